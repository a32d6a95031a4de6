"""What is shown of a run of language models, in the terminal and in report.html."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from text_run_fixture import TEACHER, stage, summary, write_run

from jaxdistill.report import print_table, summary_rows, write_report
from jaxdistill.report.chain import chain_nodes
from jaxdistill.report.columns import perplexity
from jaxdistill.stages.summary import Summary


def printed(content: dict, width: int = 200) -> str:
    stream = io.StringIO()
    print_table(content, Console(file=stream, width=width))
    return stream.getvalue()


def row_of(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(name)).split()


def test_the_terminal_shows_perplexity_accuracy_retention_agreement_and_kl():
    text = printed(summary())
    models, validation = text[: text.index("Validation")], text[text.index("Validation") : text.index("Test (")]
    assert row_of(models, "stage")[-3:] == ["steps", "tokens/s", "seconds"]
    assert row_of(models, "assistant")[-3:] == ["300", "73", "4,200"]
    assert row_of(models, "scratch")[1] == "text"
    assert row_of(validation, "stage")[2:] == ["perplexity", "accuracy", "retention", "agreement", "KL"]
    assert row_of(validation, "assistant")[2:] == ["37.00", "0.3323", "50.0%", "0.5500", "0.9029"]
    assert row_of(validation, "org/large")[2:] == ["18.50", "0.4113"]
    assert "75.00 ± 1.41" in validation
    assert "82.50 ± 1.56" in text[text.index("Test (") :]
    assert "examples/s" not in text
    assert "F1" not in text


def test_eighty_columns_cut_no_number():
    text = printed(summary(), width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, "1.00"), (23.456, "23.46"), (1234.5, "1,234"), (3.2e7, "3.2e+07")]
)
def test_perplexities_have_the_digits_that_mean_something(value, expected):
    assert perplexity(value) == expected


def test_retention_is_the_first_teachers_perplexity_divided_by_the_rows(tmp_path):
    kept = Summary("text", tmp_path)
    for entry in summary()["stages"]:
        kept.add({**entry, "retention": None})
    assert kept.rows[0]["retention"] is None
    assert kept.rows[1]["retention"] == pytest.approx({"validation": 0.5, "test": 0.5})
    assert kept.rows[-1]["retention"] == pytest.approx({"validation": 0.01, "test": 0.01})


def test_a_perplexity_that_overflowed_has_no_retention(tmp_path):
    kept = Summary("text", tmp_path)
    kept.add(stage("org/large", perplexity=TEACHER, given=True))
    lost = stage("s", perplexity=20.0)
    lost["eval"]["validation"]["perplexity"] = None  # what JSON has for an infinity
    kept.add(lost)
    assert set(kept.rows[1]["retention"]) == {"test"}


def test_the_chain_tells_each_models_perplexity():
    nodes = {node.name: node for node in chain_nodes(summary_rows(summary()), "")}
    assert nodes["assistant"].lines == ("135M parameters", "perplexity 37.00")
    assert nodes["student"].lines[1] == "perplexity 75.00 ± 1.41"
    assert nodes["direct"].kind == "control"


def report(directory: Path) -> str:
    return write_report(directory).read_text(encoding="utf-8")


def test_the_report_has_the_columns_and_curves_of_language_models(tmp_path):
    page = report(write_run(tmp_path / "run", summary()))
    for text in ("perplexity", "tokens/s", "75.00", "1,850", "50.0%", "validation perplexity", "cross-entropy (CE)"):
        assert text in page
    for text in ("examples/s", "F1", "validation accuracy", "right label"):
        assert text not in page


def charts(page: str, what: str) -> list[ElementTree.Element]:
    starts = [at for at in range(len(page)) if page.startswith('<svg class="chart"', at)]
    found = [ElementTree.fromstring(page[at : page.index("</svg>", at) + 6]) for at in starts]
    return [chart for chart in found if what in str(chart.get("aria-label"))]


def test_perplexity_falls_on_a_logarithmic_axis_towards_its_teachers(tmp_path):
    content = summary()
    page = report(write_run(tmp_path / "run", {**content, "stages": content["stages"][:2]}))
    (chart,) = charts(page, "validation perplexity")
    lines = {
        str(line.get("class")): [float(pair.split(",")[1]) for pair in str(line.get("points")).split()]
        for line in chart.iter("{http://www.w3.org/2000/svg}polyline")
    }
    ours, theirs = lines["line perplexity"], lines["line teacher"]
    assert ours == sorted(ours)  # downwards on the page is a larger y
    assert len(set(theirs)) == 1
    assert theirs[0] > ours[-1]
    steps = [b - a for a, b in itertools.pairwise(ours)]
    ratios = [b / a for a, b in itertools.pairwise(steps)]
    # what the fixture's logarithm of perplexity falls by shrinks by this factor every 50 steps
    assert ratios == pytest.approx([math.exp(-50 / 80)] * len(ratios), rel=0.05)
    assert len(charts(page, "training loss")) == 1


def test_curves_of_a_first_stage_in_progress_are_of_perplexity_too(tmp_path):
    directory = write_run(tmp_path / "run", summary())
    (directory / "summary.json").write_text('{"name": "text", "stages": []}')
    assert "validation perplexity" in report(directory)
