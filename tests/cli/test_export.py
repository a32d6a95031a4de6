"""`jaxdistill export`: what is written, where it may be written, and what the model card says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_classifier import write_classifier

from jaxdistill import models
from jaxdistill.errors import CheckpointError, ModelError
from jaxdistill.export import export_stage
from jaxdistill.inference import Classifier

TEXTS = ["the film was good", "awful , dull plot"]


def row(key: str, teacher: list[str] | None, *, accuracy: float, **fields) -> dict:
    metrics = {"accuracy": accuracy, "f1": accuracy, "loss": 0.5, "kl": 0.0125, "agreement": 0.9}
    return {
        "name": key.partition("/")[0],
        "key": key,
        "seed": 0,
        "teacher": teacher,
        "given": False,
        "architecture": "bert L2 H16",
        "parameters": 5714,
        "bytes": 22856,
        "eval": {"validation": metrics, "test": {**metrics, "accuracy": accuracy - 0.1}},
        "train": {"steps": 1200, "examples": 38_400},
        **fields,
    }


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: org/big, given → middle → small (two seeds), and a control."""
    run = tmp_path_factory.mktemp("runs") / "r"
    for key, seed in (("middle", 0), ("small/seed-3", 3), ("small/seed-1", 1), ("scratch", 4)):
        write_classifier(run / "stages" / key / "student", seed=seed)
    rows = [
        row("/models/big", None, accuracy=0.95, given=True, train=None),
        row("middle", ["/models/big"], accuracy=0.9),
        row("small/seed-3", ["middle"], accuracy=0.85),
        row("small/seed-1", ["middle"], accuracy=0.84),
        row("scratch", None, accuracy=0.7),
    ]
    (run / "stages" / "unfinished").mkdir()
    (run / "summary.json").write_text(json.dumps({"name": "r", "jaxdistill": "0.1.0", "stages": rows}))
    return run


def test_the_exported_model_is_the_stages_student(jaxdistill, run_directory, tmp_path):
    result = jaxdistill("export", run_directory, tmp_path / "out", "--stage", "small", "--seed", "1")
    assert result.status == 0, result.err
    assert result.out.startswith(str(tmp_path / "out"))
    expected = Classifier(run_directory / "stages" / "small" / "seed-1" / "student").logits(TEXTS)
    np.testing.assert_array_equal(Classifier(tmp_path / "out").logits(TEXTS), expected)


def test_a_repeated_stage_gives_its_first_seed(run_directory, tmp_path):
    export_stage(f"{run_directory}:small", tmp_path / "out")
    expected = Classifier(run_directory / "stages" / "small" / "seed-3" / "student").logits(TEXTS)
    np.testing.assert_array_equal(Classifier(tmp_path / "out").logits(TEXTS), expected)


def test_the_card_tells_the_chain_and_its_numbers(run_directory, tmp_path):
    export_stage(run_directory, tmp_path / "out", stage="small")
    card = (tmp_path / "out" / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert names == ["big", "big", "middle", "middle", "small/seed-3", "small/seed-3"]
    assert "| small/seed-3 | middle | 5,714 | validation | 0.8500 | 0.8500 | 0.9000 | 0.0125 |" in lines
    assert "| small/seed-3 | middle | 5,714 | test | 0.7500 |" in card
    assert "distilled from `middle` in 1,200 steps on 38,400 examples" in card
    assert "scratch" not in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_a_control_was_trained_on_labels_alone(run_directory, tmp_path):
    export_stage(run_directory, tmp_path / "out", stage="scratch")
    assert "trained on labels alone" in (tmp_path / "out" / "README.md").read_text()


def test_a_model_directory_is_exported_with_a_short_card(classifier, tmp_path):
    export_stage(classifier, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`negative`, `positive`" in card
    assert "accuracy" not in card


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_other_dtypes_halve_the_file_and_round_the_weights(classifier, tmp_path, dtype, tolerance):
    export_stage(classifier, tmp_path / "out", dtype=dtype)
    sizes = [(directory / "model.safetensors").stat().st_size for directory in (tmp_path / "out", classifier)]
    assert sizes[0] < 0.7 * sizes[1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    half, full = models.from_pretrained(tmp_path / "out")[1], models.from_pretrained(classifier)[1]
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=1e-6)


def test_a_factorised_model_stays_so_only_on_request(tmp_path):
    source = write_classifier(tmp_path / "hash", model_type="bert_hash")
    expected = Classifier(source).logits(TEXTS)
    for factorised, model_type in ((True, "bert_hash"), (False, "bert")):
        out = export_stage(source, tmp_path / model_type, factorised=factorised)
        assert json.loads((out / "config.json").read_text())["model_type"] == model_type
        np.testing.assert_allclose(Classifier(out).logits(TEXTS), expected, atol=1e-5)


def test_nothing_but_a_model_is_ever_replaced_and_only_when_told_to(classifier, tmp_path):
    other = write_classifier(tmp_path / "other", seed=5)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ModelError, match="exists and is not a model directory"):
        export_stage(classifier, photos, force=True)
    with pytest.raises(ModelError, match="exists already"):
        export_stage(classifier, other)
    same = tmp_path / "same"
    shutil.copytree(other, same)
    with pytest.raises(ModelError, match="is the model itself"):
        export_stage(same, same, force=True)
    export_stage(classifier, other, force=True)
    np.testing.assert_array_equal(Classifier(other).logits(TEXTS), Classifier(classifier).logits(TEXTS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "photos", "same"]
    assert (photos / "cat.jpg").read_bytes() == b"cat"


def test_an_empty_directory_may_be_filled(classifier, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export_stage(classifier, tmp_path / "out") / "model.safetensors").is_file()


def test_a_failure_leaves_nothing_behind_and_the_old_model_in_place(run_directory, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    (run / "summary.json").write_text("{")  # read for the card, when the weights are written already
    other = write_classifier(tmp_path / "other", seed=5)
    before = Classifier(other).logits(TEXTS)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        export_stage(run, other, stage="scratch", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]
    np.testing.assert_array_equal(Classifier(other).logits(TEXTS), before)


def test_what_cannot_be_exported_is_said(run_directory, classifier, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="no student yet"):
        export_stage(run_directory, out, stage="unfinished")
    with pytest.raises(CheckpointError, match="no stage 'nix'"):
        export_stage(run_directory, out, stage="nix")
    with pytest.raises(CheckpointError, match="no stage 'small/seed-7'"):
        export_stage(run_directory, out, stage="small", seed=7)
    with pytest.raises(CheckpointError, match="a seed was given without a stage"):
        export_stage(run_directory, out, seed=7)
    with pytest.raises(CheckpointError, match="say which stage"):
        export_stage(run_directory, out)
    with pytest.raises(ModelError, match="not a BertHash model"):
        export_stage(classifier, out, factorised=True)
    with pytest.raises(ModelError, match="dtype is 'int8'"):
        export_stage(classifier, out, dtype="int8")
    assert not out.exists()
