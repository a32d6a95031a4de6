"""A classifier's teacher kept on disk: the same student, nothing computed twice, nothing wrong taken for right."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_chain import TINY, VOCABULARY, chain_config, final_params, run, write_config, write_tokenizer

from jaxdistill import models
from jaxdistill.config import load_run
from jaxdistill.errors import CheckpointError, ConfigError
from jaxdistill.stages import build_caches, teacher_files

pytestmark = pytest.mark.slow


def config(material: Path, output: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    """Two seeds of one student of a given teacher."""
    raw = chain_config(material, output)
    student = {**raw["stages"][1], "student": {"architecture": "bert", **TINY}, "teacher": {"pretrained": str(teacher)}}
    return {**raw, "stages": [{**student, "train": {**student["train"], "epochs": 1}}], **changes}


def write_teacher(directory: Path, seed: int, **changes: Any) -> Path:
    shape = {"model_type": "bert", "vocab_size": len(VOCABULARY), "max_position_embeddings": 64, **TINY, **changes}
    names = {"id2label": {"0": "negative", "1": "positive"}}
    model = models.build({**shape, **names}, task="classification", num_labels=2)
    models.save_pretrained(model, model.init(jax.random.key(seed)), directory)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", 0)


@pytest.fixture(scope="module")
def trained(material: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has built its cache."""
    output = tmp_path_factory.mktemp("stored") / "run"
    run(write_config(output.parent / "c.yaml", config(material, output, teacher)), "teacher_cache=disk")
    return output


def cache_of(output: Path) -> Path:
    (directory,) = (output / "teacher_cache").iterdir()
    return directory


def test_the_student_is_that_of_an_online_teacher(trained: Path, material: Path, teacher: Path, tmp_path: Path) -> None:
    run(write_config(tmp_path / "c.yaml", config(material, tmp_path / "run", teacher)))

    def losses(output: Path) -> list[float]:
        lines = (output / "stages" / "assistant" / "metrics.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"]

    np.testing.assert_allclose(losses(trained), losses(tmp_path / "run"), rtol=0, atol=1e-5)
    pairs = zip(*(jax.tree.leaves(final_params(o, "assistant")) for o in (trained, tmp_path / "run")), strict=True)
    assert max(float(np.abs(a - b).max()) for a, b in pairs) < 1e-3  # AdamW amplifies rounding where gradients are 0


def test_its_manifest_says_what_it_is(trained: Path) -> None:
    manifest = json.loads((cache_of(trained) / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["content"]["kind"] == "dense"
    assert manifest["measured"]["kl_error"]["1.0"]["max"] < 1e-9
    assert sum(shard["rows"] for shard in manifest["shards"]) == 160


def test_another_run_shares_it_and_an_interrupted_one_continues(
    trained: Path, material: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = config(material, tmp_path / "run", teacher, disk_cache={"directory": str(tmp_path / "shared")})
    raw["stages"][0]["evaluate"] = {"batch_size": 32}
    loaded = load_run(write_config(tmp_path / "c.yaml", raw), ["teacher_cache=disk"])
    monkeypatch.setattr("jaxdistill.stages.stored_logits._SHARD_ROWS", 64)
    write = teacher_files._append

    def killed(directory: Path, arrays: dict[str, np.ndarray]) -> None:
        write(directory, arrays)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teacher_files, "_append", killed)
        with pytest.raises(KeyboardInterrupt):
            build_caches(loaded, console=Console(quiet=True))
    said = io.StringIO()
    (row,) = build_caches(loaded, console=Console(file=said, width=400))
    assert "96 of 160 rows to compute" in said.getvalue()
    whole = teacher_files.StoredRows(Path(row["directory"]), teacher_files.read_manifest(Path(row["directory"])))
    first = teacher_files.StoredRows(cache_of(trained), teacher_files.read_manifest(cache_of(trained)))
    for name, values in first.whole().items():
        np.testing.assert_allclose(whole.whole()[name], values, atol=1e-6)
    some = np.asarray([150, 3, 70])
    np.testing.assert_array_equal(whole[some]["logits"], whole.whole()["logits"][some])


@pytest.mark.parametrize("damage", ["byte", "missing", "manifest"])
def test_a_damaged_one_is_refused_and_built_anew_when_told(
    trained: Path, material: Path, teacher: Path, tmp_path: Path, damage: str
) -> None:
    raw = config(material, tmp_path / "run", teacher, teacher_cache="disk")
    shutil.copytree(trained / "teacher_cache", tmp_path / "run" / "teacher_cache")
    directory = cache_of(tmp_path / "run")
    shard = directory / "shard-00000.safetensors"
    match damage:
        case "byte":
            content = bytearray(shard.read_bytes())
            content[-3] ^= 1
            shard.write_bytes(content)
        case "missing":
            shard.unlink()
        case "manifest":
            (directory / "manifest.json").write_text("{")
    path = write_config(tmp_path / "c.yaml", raw)
    name = "manifest.json" if damage == "manifest" else shard.name
    with pytest.raises(CheckpointError, match=rf"{name}: (damaged|missing).*--rebuild"):
        run(path)
    (row,) = build_caches(load_run(path), rebuild=True, console=Console(quiet=True))
    assert row["rows"] == 160


def test_a_stale_one_is_refused_with_what_has_changed(
    trained: Path, material: Path, teacher: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "material"
    shutil.copytree(material, moved)
    theirs = shutil.copytree(teacher, tmp_path / "teacher")
    path = write_config(tmp_path / "c.yaml", config(moved, tmp_path / "run", theirs, teacher_cache="disk"))
    build_caches(load_run(path), console=Console(quiet=True))
    with (moved / "train.csv").open("a") as file:
        file.write("a lovely film,positive\n")
    with pytest.raises(CheckpointError, match=r"stale.*the training data \w+… → \w+….*delete"):
        run(path)
    shutil.copy(material / "train.csv", moved / "train.csv")
    write_teacher(theirs, 1)
    with pytest.raises(CheckpointError, match=r"stale.*the teacher's weights \w+… → \w+…"):
        run(path)


def test_a_teacher_that_has_not_been_trained(material: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", chain_config(material, tmp_path / "run", teacher_cache="disk"))
    with pytest.raises(ConfigError, match="stages that have not finished"):
        build_caches(load_run(path), stage="assistant", console=Console(quiet=True))
    with pytest.raises(ConfigError, match="there is no stage 'nobody'; expected one of teacher, assistant"):
        build_caches(load_run(path), stage="nobody", console=Console(quiet=True))
