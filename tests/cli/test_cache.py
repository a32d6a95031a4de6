"""`jaxdistill cache`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_classifier import BAD, GOOD


@pytest.fixture
def config(tmp_path: Path, classifier: Path) -> Path:
    """A student of the tiny classifier, which is never trained here."""
    rows = [f"{word} film,{label}" for label, words in (("positive", GOOD), ("negative", BAD)) for word in words]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    source = {"path": str(tmp_path / "d.csv")}
    stage = {
        "name": "student",
        "teacher": {"pretrained": str(classifier)},
        "student": {"pretrained": str(classifier)},
        "train": {"steps": 2, "batch_size": 8},
    }
    content = {
        "name": "cached",
        "output_dir": str(tmp_path / "run"),
        "data": {"train": source, "validation": source, "max_length": 8},
        "stages": [stage],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "c.yaml"


def test_it_says_where_the_cache_is_and_how_far_from_the_teacher(jaxdistill, config, tmp_path):
    result = jaxdistill("cache", config, "teacher_cache=disk", "--json")
    assert result.status == 0, result.err
    (cache,) = json.loads(result.out)["caches"]
    assert cache["rows"] == len(GOOD) + len(BAD)
    assert cache["kl_error"]["1.0"]["max"] < 1e-6
    assert (Path(cache["directory"]) / "manifest.json").is_file()
    assert Path(cache["directory"]).is_relative_to(tmp_path / "run")
    again = jaxdistill("cache", config, "teacher_cache=disk", "--stage", "student")
    assert again.status == 0, again.err
    assert "teacher caches" in again.out
    assert "rows to compute" not in again.out


def test_a_run_without_caches_is_told_how_to_have_one(jaxdistill, config):
    result = jaxdistill("cache", config)
    assert result.status == 2
    assert "teacher_cache=disk" in result.err
