"""A whole chain: what it leaves, that it can be loaded, and that it goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_chain import KEYS, assert_same_params, chain_config, final_params, run, write_config

from jaxdistill import models
from jaxdistill.config import load_run
from jaxdistill.errors import CheckpointError, ConfigError, DivergedError, ModelError
from jaxdistill.stages import check


def test_the_chain_leaves_what_it_promises(finished: Path):
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["key"] for row in summary["stages"]] == KEYS
    teacher = summary["stages"][0]
    assert teacher["eval"]["validation"]["accuracy"] > 0.9
    for row in summary["stages"]:
        assert set(row["eval"]) == {"validation", "test"}
        assert row["train"]["skipped_steps"] == 0
        assert row["train"]["examples"] == 160 * row["train"]["steps"] // 10
        assert ("kl" in row["eval"]["test"]) == (row["teacher"] is not None)
    assert summary["stages"][2]["teacher"] == ["assistant"]
    assert (finished / "report.html").stat().st_size > 1000
    for key in KEYS:
        steps = [json.loads(line)["step"] for line in (finished / "stages" / key / "metrics.jsonl").open()]
        assert steps == sorted(steps)


def test_only_the_first_seed_of_a_stage_compiles(finished: Path):
    compiling = [
        row["train"]["compile_seconds"] for row in json.loads((finished / "summary.json").read_text())["stages"]
    ]
    assert [seconds > 0 for seconds in compiling] == [True, True, True, False, True]


def test_the_exported_student_is_the_checkpoint(finished: Path):
    model, params = models.from_pretrained(finished / "stages" / "assistant" / "student", task="classification")
    assert model.config.id2label == ("negative", "positive")
    expected = final_params(finished, "assistant")
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_finished_run_is_not_redone(finished: Path, material: Path):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("stages/**/checkpoints/*")}
    run(finished.parent / "tiny.yaml")
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("stages/**/checkpoints/*")}


def test_a_changed_config_is_refused_and_named(finished: Path, material: Path):
    with pytest.raises(ConfigError) as caught:
        run(finished.parent / "tiny.yaml", "stages.1.train.learning_rate=1e-3")
    assert "stages.1.train.learning_rate" in str(caught.value).replace("stages.assistant", "stages.1")


def test_operational_keys_may_change(finished: Path):
    run(finished.parent / "tiny.yaml", "stages.1.train.log_every=2")


def test_a_missing_newest_checkpoint_costs_only_time(finished: Path, tmp_path: Path, material: Path):
    """The last stage's end is lost and its newest checkpoint truncated: the one before is used, bitwise the same."""
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    stage = output / "stages" / "student" / "seed-1"
    (stage / "stage.json").unlink()
    newest = max((stage / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    console = Console(record=True, width=200)
    run(write_config(tmp_path / "tiny.yaml", chain_config(material, output)), console=console)
    assert newest.name in console.export_text()
    assert_same_params(finished, output)


def test_a_damaged_hand_over_is_trained_again(finished: Path, tmp_path: Path, material: Path):
    """The checkpoint that a finished stage handed on is damaged: found at the start, and made again bitwise."""
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    stage = output / "stages" / "assistant"
    handed_on = stage / "checkpoints" / str(json.loads((stage / "stage.json").read_text())["checkpoint"])
    victim = max((path for path in handed_on.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    console = Console(record=True, width=200)
    run(write_config(tmp_path / "tiny.yaml", chain_config(material, output)), console=console)
    assert "damaged checkpoint" in console.export_text()
    assert_same_params(finished, output)


@pytest.mark.long
@pytest.mark.slow
def test_pmap_gives_the_same_student(material: Path, tmp_path: Path):
    config = chain_config(material, tmp_path / "jit")
    config["stages"] = config["stages"][:2]
    path = write_config(tmp_path / "tiny.yaml", config)
    jit = run(path).rows
    pmap = run(path, "parallel.strategy=pmap", "parallel.data=4", f"output_dir={tmp_path / 'pmap'}").rows
    for a, b in zip(jit, pmap, strict=True):
        assert a["eval"]["validation"]["loss"] == pytest.approx(b["eval"]["validation"]["loss"], rel=1e-3)


@pytest.mark.long
@pytest.mark.slow
def test_a_cached_teacher_teaches_the_same(material: Path, tmp_path: Path):
    config = chain_config(material, tmp_path / "online")
    config["stages"] = config["stages"][:2]
    path = write_config(tmp_path / "tiny.yaml", config)
    online = run(path).rows[1]
    cached = run(path, "teacher_cache=memory", f"output_dir={tmp_path / 'cached'}").rows[1]
    assert online["eval"]["validation"]["loss"] == pytest.approx(cached["eval"]["validation"]["loss"], rel=1e-3)


@pytest.mark.slow
def test_several_teachers_given_and_trained(finished: Path, material: Path, tmp_path: Path):
    config = chain_config(material, tmp_path / "run")
    config["stages"] = [
        {
            **config["stages"][1],
            "teacher": [
                {"pretrained": str(finished / "stages" / "teacher" / "student"), "weight": 2.0},
                {"pretrained": str(finished / "stages" / "assistant" / "student")},
            ],
        }
    ]
    rows = run(write_config(tmp_path / "tiny.yaml", config)).rows
    assert [row["given"] for row in rows] == [True, True, False]
    assert rows[2]["retention"]["test"] == pytest.approx(
        rows[2]["eval"]["test"]["accuracy"] / rows[0]["eval"]["test"]["accuracy"]
    )


def test_a_teacher_without_a_classifier_is_refused_before_training(material: Path, tmp_path: Path):
    config = chain_config(material, tmp_path / "run")
    config["stages"] = [{**config["stages"][1], "teacher": {"pretrained": str(material / "encoder")}}]
    with pytest.raises(ModelError, match="no trained classifier"):
        run(write_config(tmp_path / "tiny.yaml", config))


def test_divergence_stops_with_the_last_good_checkpoint(material: Path, tmp_path: Path):
    config = chain_config(material, tmp_path / "run")
    config["stages"] = config["stages"][:1]
    config["stages"][0]["train"] |= {"learning_rate": 1e30, "max_skipped": 3, "max_grad_norm": None, "warmup": 0}
    with pytest.raises(DivergedError, match="3 updates in a row"):
        run(write_config(tmp_path / "tiny.yaml", config))


@pytest.mark.slow
def test_check_trains_nothing(material: Path, tmp_path: Path):
    path = write_config(tmp_path / "tiny.yaml", chain_config(material, tmp_path / "run"))
    result = check(load_run(path), console=Console(quiet=True))
    assert [row["stage"] for row in result["stages"]] == KEYS
    assert all(np.isfinite(row["loss"]) and row["bytes"]["peak"] > 0 for row in result["stages"])
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_share_a_directory(finished: Path):
    from jaxdistill.stages.directory import locked

    with locked(finished), pytest.raises(CheckpointError, match="another process"):
        run(finished.parent / "tiny.yaml")
