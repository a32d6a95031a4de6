"""report.html of finished, partial, empty and damaged runs."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_fixture import summary, write_run

from jaxdistill.errors import CheckpointError
from jaxdistill.report import write_report

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects the text, and what a page would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "object") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def report(directory: Path) -> Page:
    return Page(write_report(directory).read_text(encoding="utf-8"))


def test_a_report_is_one_file_that_fetches_and_runs_nothing(tmp_path):
    directory = write_run(tmp_path / "run")
    page = report(directory)
    assert page.fetched == []
    assert "@import" not in (directory / "report.html").read_text()
    assert "url(http" not in (directory / "report.html").read_text()
    assert [path.name for path in directory.iterdir() if "report" in path.name] == ["report.html"]


def test_a_report_shows_chain_results_and_curves(tmp_path):
    page = report(write_run(tmp_path / "run"))
    for text in ("0.8200 ± 0.0158", "0.8100 ± 0.0158", "seed 3", "4.39M", "not finished", "learns from", "94.1%"):
        assert text in page.text
    assert page.tags.count("section") == 4  # a card of curves for every trained stage
    assert page.tags.count("svg") == 1 + 2 * 4


def test_text_from_outside_is_escaped(tmp_path):
    content = summary()
    content["name"] = content["stages"][1]["architecture"] = "<script>alert(1)</script>"
    content["stages"][0]["name"] = '"><img src=x>'
    page = report(write_run(tmp_path / "run", content))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    directory = write_run(tmp_path / "run", {"name": "new", "stages": []})
    page = report(directory)
    assert "No stage has finished yet." in page.text
    assert "not finished" in page.text  # the chain is known from config.yaml
    (directory / "summary.json").unlink()
    assert "Nothing has been logged yet." in report(directory).text


def test_curves_of_a_stage_in_progress_are_shown_although_a_line_is_torn(tmp_path):
    directory = write_run(tmp_path / "run", {"name": "new", "stages": []})
    stage = directory / "stages" / "assistant"
    stage.mkdir()
    rows = [{"step": step, "kind": "train", "loss": 1.0 / step, "ce": 1.0 / step} for step in (1, 2, 3)]
    (stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "ki')
    assert report(directory).tags.count("polyline") == 1


def test_steps_logged_again_after_a_resume_are_drawn_once(tmp_path):
    directory = write_run(tmp_path / "run", {"name": "new", "stages": []})
    stage = directory / "stages" / "assistant"
    stage.mkdir()
    rows = [{"step": step, "kind": "train", "loss": 1.0, "ce": 1.0} for step in (1, 2, 3, 2, 3, 4)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(directory).read_text()
    points = text[text.index('points="') + 8 :].split('"')[0].split()
    across = [float(point.split(",")[0]) for point in points]
    assert len(across) == 4
    assert across == sorted(across)


def test_what_is_not_a_run_or_not_readable_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a run directory"):
        write_report(tmp_path)
    directory = write_run(tmp_path / "run")
    (directory / "summary.json").write_text('{"stages": [')
    with pytest.raises(CheckpointError, match=r"summary\.json: not valid JSON"):
        write_report(directory)
    (directory / "summary.json").write_text('{"stages": [1]}')
    with pytest.raises(CheckpointError, match="expected an object with a list of stages"):
        write_report(directory)
    assert not (directory / "report.html").exists()
