"""A stage that searches: rounds of students in one compiled program, of which the best of all is handed on."""

from __future__ import annotations

import io
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
from jaxdistill.errors import CheckpointError, ConfigError
from jaxdistill.stages import check

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

SEARCH = {
    "trials": 4,
    "together": 2,
    "kd_weight": [1.0, 0.5],
    "temperature": {"low": 1.0, "high": 6.0},
    "learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", 0, initializer_range=0.3)


def searched(material: Path, output: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    raw = config(material, output, teacher)
    (stage,) = raw["stages"]
    stage["checkpoint"] = {"every": 4, "best": "loss"}
    return {**raw, "stages": [{**stage, "sweep": {**SEARCH, **changes}}]}


@pytest.fixture(scope="module")
def trained(material: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run directory, and what was printed."""
    output, said = tmp_path_factory.mktemp("searched") / "run", io.StringIO()
    path = write_config(output.parent / "c.yaml", searched(material, output, teacher))
    run(path, console=Console(file=said, width=400))
    return output, said.getvalue()


def rounds_of(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "stages" / "assistant" / "search.json").read_text())["rounds"]


def results_of(output: Path) -> list[tuple[Any, ...]]:
    return [
        (each["points"], each["values"], [(row["name"], row["sweep"], row["eval"]) for row in each["rows"]])
        for each in rounds_of(output)
    ]


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = (final_params(output, "assistant") for output in (left, right))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs)
    assert results_of(left) == results_of(right)


def test_all_trials_are_in_the_summary_and_the_best_is_handed_on(trained: tuple[Path, str]) -> None:
    output, said = trained
    rows = [row for row in json.loads((output / "summary.json").read_text())["stages"] if not row["given"]]
    students, winner = [row for row in rows if "sweep" in row], rows[-1]
    assert [row["name"].split(":")[0] for row in students] == [f"assistant (trial {n}" for n in (1, 2, 3, 4)]
    points = [point for each in rounds_of(output) for point in each["points"]]
    values = [value for each in rounds_of(output) for value in each["values"]]
    assert [row["sweep"] for row in students] == points
    np.testing.assert_allclose([row["eval"]["validation"]["loss"] for row in students], values, rtol=1e-6)
    assert winner["eval"]["validation"]["loss"] == pytest.approx(min(values), rel=1e-6)
    assert winner["chosen"] == points[values.index(min(values))]
    assert "assistant: round 2 of 2, loss" in said
    kept = [path.parent.name for path in (output / "stages" / "assistant" / "rounds").glob("*/sweep")]
    assert kept == [str(1 + values.index(min(values)) // 2)]
    assert students[0]["name"] in (output / "report.html").read_text()


def test_the_second_round_compiles_nothing(trained: tuple[Path, str]) -> None:
    first, second = (each["rows"][0]["train"] for each in rounds_of(trained[0]))
    assert first["steps"] == second["steps"]
    assert first["compile_seconds"] > 0
    assert second["compile_seconds"] == 0


@pytest.mark.parametrize("saves", [1, 4])
def test_killed_and_continued_it_is_the_same(
    trained: tuple[Path, str], material: Path, teacher: Path, tmp_path: Path, monkeypatch: Any, saves: int
) -> None:
    path = write_config(tmp_path / "c.yaml", searched(material, tmp_path / "run", teacher))
    run_interrupted(path, monkeypatch, saves=saves)
    finished = ["values" in each for each in rounds_of(tmp_path / "run")]
    assert finished == ([False] if saves == 1 else [True, False])
    with pytest.raises(ConfigError, match=r"stages\.assistant\.sweep\.trials: 4 → 6"):
        run(path, "stages.assistant.sweep.trials=6")
    run(path)
    assert_same(tmp_path / "run", trained[0])


def test_rounds_of_other_data_are_refused(
    trained: tuple[Path, str], material: Path, teacher: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path / "c.yaml", searched(material, tmp_path / "run", teacher))
    record = json.loads((trained[0] / "stages" / "assistant" / "search.json").read_text())
    own = tmp_path / "run" / "stages" / "assistant" / "search.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({**record, "fingerprints": {**record["fingerprints"], "data": "other"}}))
    with pytest.raises(CheckpointError, match=r"search\.json: made with a different data"):
        run(path)
    own.write_text("{")
    with pytest.raises(CheckpointError, match=r"search\.json: damaged"):
        run(path)


@pytest.mark.long
def test_a_check_runs_the_step_of_the_first_round(material: Path, teacher: Path, tmp_path: Path) -> None:
    raw = searched(material, tmp_path / "run", teacher)
    (found,) = check(run_from_dict(raw), console=Console(quiet=True))["stages"]
    assert np.isfinite(found["loss"])
    assert not (tmp_path / "run").exists()
