"""summary.json as rows and as terminal tables."""

from __future__ import annotations

import io
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from run_fixture import stage, summary

from jaxdistill.report import print_table, summary_rows
from jaxdistill.report.table import byte_size, compact, short_name


def printed(content: dict, width: int = 200) -> str:
    stream = io.StringIO()
    print_table(content, Console(file=stream, width=width))
    return stream.getvalue()


def test_seeds_of_a_stage_become_one_row_with_mean_and_sample_deviation():
    rows = {row.name: row for row in summary_rows(summary())}
    assert list(rows) == ["org/large", "assistant", "student", "direct", "scratch"]
    student = rows["student"]
    values = [0.80, 0.81, 0.82, 0.83, 0.84]
    estimate = student.quality["validation"]["accuracy"]
    assert estimate.mean == pytest.approx(statistics.mean(values))
    assert estimate.deviation == pytest.approx(statistics.stdev(values))
    assert [member.seed for member in student.members] == [0, 1, 2, 3, 4]
    assert [member.quality["test"]["accuracy"].mean for member in student.members] == pytest.approx(
        [value - 0.01 for value in values]
    )
    assert rows["direct"].members == ()
    assert rows["direct"].quality["validation"]["accuracy"].deviation is None


def test_a_number_that_some_seeds_lack_is_averaged_over_the_others():
    broken = stage("s", key="s/seed-1", seed=1, accuracy=float("nan"))
    missing = stage("s", key="s/seed-2", seed=2, accuracy=0.5, eval={}, retention=None, train=None)
    (row,) = summary_rows({"stages": [stage("s", key="s/seed-0", accuracy=0.7), broken, missing]})
    assert row.quality["validation"]["accuracy"].mean == pytest.approx(0.7)
    assert row.quality["validation"]["accuracy"].deviation is None
    assert len(row.members) == 3


def test_one_finished_seed_of_a_repeated_stage_is_shown_with_its_seed():
    (row,) = summary_rows({"stages": [stage("s", key="s/seed-4", seed=4, accuracy=0.7)]})
    assert [member.seed for member in row.members] == [4]


@pytest.mark.parametrize("content", [{}, {"stages": []}, {"name": "x", "stages": []}])
def test_a_run_without_a_finished_stage_prints_one_line(content):
    assert printed(content) == "no stage has finished yet\n"


def test_a_row_with_nothing_but_a_name_prints():
    assert "half" in printed({"stages": [{"name": "half"}]})


def test_validation_and_test_are_printed_apart():
    text = printed(summary())
    validation, test = text[text.index("Validation") : text.index("Test (")], text[text.index("Test (") :]
    assert "0.8200 ± 0.0158" in validation
    assert "0.8100 ± 0.0158" in test
    assert "student × 5 seeds" in validation
    only = {"validation": {"accuracy": 0.7}}
    without_test = {"stages": [stage("s", accuracy=0.7, eval=only, retention={"validation": 1.0})]}
    assert "Test (" not in printed(without_test)


def test_eighty_columns_cut_no_number_and_no_title():
    text = printed(summary(), width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for word in ("params", "seconds", "examples/s", "retention", "agreement", "KL", "0.8200 ±", "0.0158"):
        assert word in text


def test_brackets_in_names_are_not_markup():
    assert "[bold]x[/bold]" in printed({"stages": [stage("[bold]x[/bold]", accuracy=0.5)]})


def test_a_teacher_given_by_its_path_is_called_by_its_last_part():
    rows = [
        stage("/data/models/bert-large", accuracy=0.9, given=True),
        stage("s", accuracy=0.8, teacher=["/data/models/bert-large"]),
    ]
    text = printed({"stages": rows})
    assert "bert-large" in text
    assert "/data" not in text
    assert short_name("org/model") == "org/model"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0"), (7, "7"), (999, "999"), (242_662, "243K"), (999_600, "1M"), (4_386_178, "4.39M"), (335_143_938, "335M")],
)
def test_compact_counts(count, expected):
    assert compact(count) == expected


@given(st.integers(1, 10**12 - 10**9))
def test_compact_counts_and_sizes_are_within_half_a_percent(count):
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}
    text = compact(count)
    value = float(text[:-1]) * factor[text[-1]] if text[-1] in factor else float(text)
    assert abs(value - count) <= 0.005 * count
    size, unit = byte_size(count).split()
    assert abs(float(size) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] - count) <= 0.005 * count
