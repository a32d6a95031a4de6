"""`jaxdistill run` and `report`, on a run of one stage and two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_classifier import BAD, GOOD

KEYS = {"name", "created", "jaxdistill", "device", "stages"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> Path:
    """A configuration whose one student starts from the tiny classifier and learns for two steps."""
    directory = tmp_path_factory.mktemp("config")
    rows = [f"{word} film,{label}" for label, words in (("positive", GOOD), ("negative", BAD)) for word in words * 2]
    (directory / "d.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    source = {"path": str(directory / "d.csv")}
    content = {
        "name": "two-steps",
        "output_dir": str(directory / "run"),
        "data": {"train": source, "validation": source, "max_length": 8},
        "logging": {"tensorboard": False},
        "stages": [
            {
                "name": "only",
                "teacher": None,
                "student": {"pretrained": str(classifier)},
                "train": {"steps": 2, "batch_size": 8, "log_every": 1},
                "evaluate": {"batch_size": 16},
            }
        ],
    }
    (directory / "two.yaml").write_text(yaml.safe_dump(content))
    return directory / "two.yaml"


def test_a_check_prints_the_chain_and_leaves_no_run(jaxdistill, config, tmp_path):
    result = jaxdistill("run", config, "--check", "--output-dir", tmp_path / "r", "--json")
    assert result.status == 0, result.err
    (stage,) = json.loads(result.out)["stages"]
    assert stage["stage"] == "only"
    assert stage["bytes"]["peak"] > 0
    assert "only" in result.err
    assert not (tmp_path / "r").exists()


def test_a_run_ends_in_a_summary_and_is_not_redone(jaxdistill, config, tmp_path):
    output = tmp_path / "a run: with spaces #1"
    first = jaxdistill("run", config, "--output-dir", output, "--json")
    assert first.status == 0, first.err
    summary = json.loads(first.out)
    assert set(summary) >= KEYS
    assert "Validation" in first.err
    assert json.loads((output / "summary.json").read_text())["stages"] == summary["stages"]
    again = jaxdistill("run", config, "--output-dir", output, "--quiet")
    assert (again.status, again.out, again.err) == (0, "", "")
    report = jaxdistill("report", output)
    assert report.status == 0
    assert "Validation" in report.out
    assert f"report: {output / 'report.html'}" in report.out
    assert json.loads(jaxdistill("report", output, "--json").out)["stages"] == summary["stages"]
    changed = jaxdistill("run", config, "--output-dir", output, "stages.0.train.learning_rate=0.5", "seed=3")
    assert changed.status == 2
    assert "learning_rate: 0.0001 → 0.5" in changed.err
    assert all(line.startswith("error: ") for line in changed.err.splitlines())


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["nonsense"], ["nonsense"]),
        (["stages.0.train.lerning_rate=1", "seed=x"], ["did you mean", "seed"]),
        (["data.train.path=nix.csv"], ["nix.csv"]),
    ],
)
def test_every_mistake_in_a_configuration_has_its_line(jaxdistill, config, tmp_path, overrides, messages):
    result = jaxdistill("run", config, "--output-dir", tmp_path / "r", *overrides)
    assert result.status == 2
    lines = result.err.splitlines()
    assert len(lines) == len(messages)
    assert all(line.startswith("error: ") for line in lines)
    assert all(any(message in line for line in lines) for message in messages)
    assert not (tmp_path / "r").exists()


def test_an_output_directory_that_cannot_be_made(jaxdistill, config, tmp_path):
    (tmp_path / "file").write_text("")
    result = jaxdistill("run", config, "--output-dir", tmp_path / "file" / "r", "--quiet")
    assert result.status == 2
    assert "output_dir" in result.err
    assert "a file" in result.err


def test_a_configuration_that_is_not_there(jaxdistill, tmp_path):
    result = jaxdistill("run", tmp_path / "nix.yaml")
    assert (result.status, result.err) == (2, f"error: {tmp_path / 'nix.yaml'}: no such file\n")
