"""A language model's teacher kept on disk, beside the rows of text it was asked about."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_chain import assert_same_params, run, write_config
from tiny_text import text_config, write_text, write_word_tokenizer

from jaxdistill.config import build_chain, load_run
from jaxdistill.errors import CheckpointError, ConfigError
from jaxdistill.stages import build_caches
from jaxdistill.stages.prepare import Preparation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    for name, documents, seed in (("train", 300, 0), ("validation", 30, 1), ("test", 30, 2)):
        write_text(directory / f"{name}.txt", documents, seed)
    write_word_tokenizer(directory / "tokenizer")
    return directory


def config(material: Path, output: Path, **changes: Any) -> dict[str, Any]:
    raw = text_config(material, output, disk_cache={"top_k": 8}, **changes)
    raw["stages"][1]["teacher_cache"] = "disk"
    return raw


@pytest.fixture(scope="module")
def trained(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    run(write_config(output.parent / "text.yaml", config(material, output)))
    return output


def manifest_of(output: Path) -> dict[str, Any]:
    (path,) = (output / "teacher_cache").glob("*/manifest.json")
    return json.loads(path.read_text())


def test_a_student_learns_from_what_is_stored(trained: Path) -> None:
    rows = {row["key"]: row for row in json.loads((trained / "summary.json").read_text())["stages"]}
    teacher, student = (rows[key]["eval"]["validation"] for key in ("teacher", "student"))
    assert student["teacher_perplexity"] == pytest.approx(teacher["perplexity"], rel=1e-6)  # measured on the whole one
    assert student["perplexity"] < 25
    assert student["kl"] < 1.0
    lines = (trained / "stages" / "student" / "metrics.jsonl").read_text().splitlines()
    logged = [row["forward_kl"] for row in map(json.loads, lines) if row["kind"] == "train"]
    assert logged[-1] < 0.7 * logged[0]


def test_the_manifest_holds_the_error_and_the_size(trained: Path) -> None:
    manifest = manifest_of(trained)
    assert manifest["complete"]
    assert manifest["content"]["temperatures"] == [2.0]
    error = manifest["measured"]["kl_error"]["2.0"]
    assert 0 < error["over_stored_and_rest"] < 1e-3
    assert error["over_stored_and_rest"] <= error["mean"] < 0.5
    assert manifest["measured"]["bytes_per_token"] < 8 * 2 + 6 + 4 + 12 + 8


def test_the_cached_batches_are_the_rows_they_were_computed_from(trained: Path) -> None:
    loaded = load_run(trained / "config.yaml")
    preparation = Preparation(build_chain(loaded), Console(quiet=True))
    preparation.survey()
    survey = preparation.surveys["student"]
    feed = preparation.task.job(survey).feed
    rows = np.concatenate([batch["input_ids"] for batch in survey.splits["train"].packed_rows(batch_size=7)])
    count = survey.splits["train"].row_count()
    assert len(feed.rows) == count
    seen = []
    for batch in feed.iterator(batch_size=8, seed=3, steps=2 * count // 8):
        assert (batch["example_id"] >= 0).all()
        seen += [row.tobytes() for row in batch["input_ids"]]
    whole = sorted(row.tobytes() for row in rows[:count])
    assert sorted(seen[:count]) == whole  # every epoch has every row once,
    assert seen[:count] != seen[count : 2 * count]  # in another order


def test_killed_while_training_it_continues_with_the_same_batches(
    trained: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path / "text.yaml", config(material, tmp_path / "run"))
    from jaxdistill.train import loop

    evaluate = loop._Loop._evaluate

    def killed(self: Any) -> bool:
        improved = evaluate(self)
        if self.job.title == "student" and self.done == 20:
            raise KeyboardInterrupt
        return improved

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    said = io.StringIO()
    run(path, console=Console(file=said, width=200))
    assert "rows to compute" not in said.getvalue()
    assert "continues at step 10" in said.getvalue()
    assert_same_params(trained, tmp_path / "run", keys=["student"])


def test_another_temperature_needs_another_cache(trained: Path, material: Path, tmp_path: Path) -> None:
    raw = config(material, trained)
    raw["stages"][1]["loss"] = {"preset": "hinton", "temperature": 3.0}
    with pytest.raises(CheckpointError, match=r"stale.*temperatures \[2.0\] → \[3.0\]"):
        build_caches(load_run(write_config(tmp_path / "text.yaml", raw)), console=Console(quiet=True))


def test_more_tokens_than_the_vocabulary_has(material: Path, tmp_path: Path) -> None:
    raw = config(material, tmp_path / "run") | {"disk_cache": {"top_k": 64}}
    with pytest.raises(ConfigError, match=r"disk_cache.top_k: 64 tokens.*has 43; set disk_cache.top_k=43 or less"):
        run(write_config(tmp_path / "text.yaml", raw))
