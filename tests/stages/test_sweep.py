"""A stage that trains several students at once, chooses one on validation, and hands it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from test_stored_logits import config, write_teacher
from tiny_chain import final_params, run, run_interrupted, write_config

from jaxdistill.config import run_from_dict
from jaxdistill.stages import check
from jaxdistill.train.checkpoint import load_params

pytestmark = pytest.mark.slow

SWEEP = {"kd_weight": [0.5, 1.0], "learning_rate": [3.0e-3, 1.0e-4]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", 0, initializer_range=0.3)


def swept(material: Path, output: Path, teacher: Path) -> dict[str, Any]:
    """A sweep, and a stage that learns from its winner."""
    raw = config(material, output, teacher)
    (stage,) = raw["stages"]
    stage["checkpoint"] = {"every": 4, "best": "loss"}
    follower = {**stage, "name": "last", "teacher": "assistant", "train": {"steps": 1, "batch_size": 16}}
    return {**raw, "stages": [{**stage, "sweep": SWEEP}, follower]}


@pytest.fixture(scope="module")
def trained(material: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("swept") / "run"
    run(write_config(output.parent / "c.yaml", swept(material, output, teacher)))
    return output


def rows_of(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "summary.json").read_text())["stages"]


def test_all_students_are_in_the_summary_and_the_best_is_handed_on(trained: Path) -> None:
    rows = {row["name"]: row for row in rows_of(trained) if not row["given"]}
    assert len(rows) == 6
    winner = rows["assistant"]
    losses = {name: row["eval"]["validation"]["loss"] for name, row in rows.items() if "sweep" in row}
    assert len(losses) == 4
    assert winner["eval"]["validation"]["loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    best = min(losses, key=lambda name: losses[name])
    assert winner["chosen"] == rows[best]["sweep"]
    assert rows["last"]["teacher"] == ["assistant"]
    assert (trained / "stages" / "assistant" / "student" / "model.safetensors").is_file()
    assert best in (trained / "report.html").read_text()


@pytest.mark.long
def test_a_check_runs_the_step_of_all_students(material: Path, teacher: Path, tmp_path: Path) -> None:
    raw = swept(material, tmp_path / "run", teacher)
    (found,) = check(run_from_dict({**raw, "stages": raw["stages"][:1]}), console=Console(quiet=True))["stages"]
    alone = {key: value for key, value in raw["stages"][0].items() if key != "sweep"}
    (single,) = check(run_from_dict({**raw, "stages": [alone]}), console=Console(quiet=True))["stages"]
    assert np.isfinite(found["loss"])
    assert found["bytes"]["arguments"] > 1.5 * single["bytes"]["arguments"]
    assert not (tmp_path / "run").exists()


def test_a_student_equals_its_own_run(trained: Path, material: Path, teacher: Path, tmp_path: Path) -> None:
    raw = swept(material, tmp_path / "run", teacher)
    stage = {**raw["stages"][0], "loss": {"preset": "hinton", "alpha": 1.0}}
    del stage["sweep"]
    stage["train"] = {**stage["train"], "learning_rate": 1.0e-4}
    run(write_config(tmp_path / "c.yaml", {**raw, "stages": [stage]}))
    checkpoints = (trained / "stages" / "assistant" / "sweep" / "checkpoints").glob("[0-9]*")
    stacked = load_params(max(checkpoints, key=lambda path: int(path.name)))
    alone = final_params(tmp_path / "run", "assistant")
    for got, wanted in zip(jax.tree.leaves(stacked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(got)[3], np.asarray(wanted), rtol=0, atol=1e-5)


def test_killed_and_continued_it_is_the_same(
    trained: Path, material: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path / "c.yaml", swept(material, tmp_path / "run", teacher))
    run_interrupted(path, monkeypatch)
    run(path)
    ours, theirs = (final_params(output, "assistant") for output in (tmp_path / "run", trained))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs)
