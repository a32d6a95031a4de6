"""A chain of masked language models, run to its end, interrupted and resumed; and whom it refuses to learn from."""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from test_kill_resume import start
from tiny_chain import assert_same_params, run, write_config
from tiny_masked import PIECES, SHAPE, masked_config, write_piece_tokenizer
from tiny_text import write_text

from jaxdistill import models
from jaxdistill.cli.evaluation import Options, evaluate_model
from jaxdistill.config import build_chain, load_run
from jaxdistill.errors import JaxdistillError
from jaxdistill.export.huggingface import export_stage
from jaxdistill.stages.prepare import Preparation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("masked")
    for name, documents, seed in (("train", 300, 0), ("validation", 30, 1), ("test", 30, 2)):
        write_text(directory / f"{name}.txt", documents, seed)
    write_piece_tokenizer(directory / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def trained(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    run(write_config(output.parent / "masked.yaml", masked_config(material, output)))
    return output


def rows(directory: Path) -> dict[str, Any]:
    stages = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["stages"]
    return {row["key"]: row for row in stages}


def test_what_is_measured(trained: Path) -> None:
    found = rows(trained)
    teacher, student = found["teacher"]["eval"], found["student"]["eval"]
    assert set(teacher["test"]) == {"pseudo_perplexity", "loss", "accuracy", "masked_tokens"}
    added = {"teacher_pseudo_perplexity", "teacher_loss", "kl", "agreement"}
    assert set(student["test"]) == set(teacher["test"]) | added
    for split in ("validation", "test"):  # the same masks for both
        assert student[split]["masked_tokens"] == teacher[split]["masked_tokens"] > 100
        assert student[split]["teacher_loss"] == pytest.approx(teacher[split]["loss"], rel=1e-6)
        assert found["student"]["retention"][split] == student[split]["accuracy"] / teacher[split]["accuracy"]
    lines = (trained / "stages" / "student" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [row for row in map(json.loads, lines) if row["kind"] == "validation"]
    assert [row["step"] for row in logged] == [10, 20, 30, 40]
    assert logged[-1]["kl"] < logged[0]["kl"]
    best = min(logged, key=lambda row: row["loss"])
    assert found["student"]["train"]["best_step"] == best["step"]


@pytest.mark.long
def test_killed_and_continued_is_bitwise_the_same(trained: Path, material: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = write_config(tmp_path / "masked.yaml", masked_config(material, output))
    process = start(config)
    deadline = time.monotonic() + 240
    saved = output / "stages" / "student" / "checkpoints"
    while process.poll() is None and not list(saved.glob("[1-9]*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(config)
    assert_same_params(trained, output, keys=["teacher", "student"])


def test_evaluated_by_itself_it_is_what_the_run_measured(trained: Path) -> None:
    result = evaluate_model(Options(f"{trained}:student", batch_size=8, teacher=f"{trained}:teacher"))
    assert result["split"] == "test"
    for name, value in rows(trained)["student"]["eval"]["test"].items():
        assert result[name] == pytest.approx(value, rel=1e-5), name


def test_it_is_exported_as_a_masked_language_model(trained: Path, tmp_path: Path) -> None:
    directory = export_stage(trained, tmp_path / "exported", stage="student")
    assert models.task_from_hf(directory) == "masked_lm"
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: fill-mask" in card
    assert "masked accuracy" in card


@pytest.mark.parity
def test_transformers_gives_the_student_s_logits(trained: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = trained / "stages" / "student" / "student"
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(directory).eval()
    assert type(theirs).__name__ == "BertForMaskedLM"
    encoded = tokenizer(["w1 [MASK] w23", "w4 w5 w6 [MASK]"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**encoded).logits.numpy()
    model, params = models.from_pretrained(directory, task="masked_lm")
    batch = {name: encoded[name].numpy().astype(np.int32) for name in ("input_ids", "attention_mask")}
    places = np.argmax(batch["input_ids"] == tokenizer.mask_token_id, axis=1)[:, None].astype(np.int32)
    logits = model.apply(params, {**batch, "masked_positions": places})["logits"]
    np.testing.assert_allclose(logits[:, 0], expected[np.arange(2), places[:, 0]], rtol=1e-4, atol=1e-5)


def test_the_student_is_fine_tuned_by_a_run_of_its_own(trained: Path, tmp_path: Path) -> None:
    student = trained / "stages" / "student" / "student"
    (tmp_path / "labelled.csv").write_text("text,label\n" + "w1 w2,a\nw3 w4,b\n" * 20)
    source = {"path": str(tmp_path / "labelled.csv")}
    stage = {
        "name": "tuned",
        "teacher": None,
        "student": {"pretrained": str(student)},
        "train": {"steps": 2, "batch_size": 8, "learning_rate": 1e-9},
    }
    raw = {
        "name": "tuned",
        "output_dir": str(tmp_path / "run"),
        "data": {"train": source, "validation": source, "max_length": 16},
        "logging": {"tensorboard": False},
        "parallel": {"data": 1},
        "stages": [stage],
    }
    console = recording()
    run(write_config(tmp_path / "tuned.yaml", raw), console=console)
    assert "newly initialised" in console.export_text()
    general, tuned = (
        models.from_pretrained(directory, task="masked_lm" if directory == student else "classification")[1]
        for directory in (student, tmp_path / "run" / "stages" / "tuned" / "student")
    )
    for part in ("embeddings", "encoder"):
        for ours, theirs in zip(jax.tree.leaves(tuned[part]), jax.tree.leaves(general[part]), strict=True):
            np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6)


# --- given teachers --------------------------------------------------------------------------------------------------


def test_a_teacher_without_a_head_teaches_features_alone(material: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher", task="classification")
    raw = with_teacher(material, tmp_path)
    assert "has no masked_lm head, whose logits the stage reads (forward_kl); train one" in survey_error(tmp_path, raw)
    raw["stages"][0] |= {"loss": [{"type": "cosine"}, {"type": "relation_kl"}]}
    given, row = run(write_config(tmp_path / "masked.yaml", raw)).to_dict()["stages"]
    assert given["eval"] == {}
    assert set(row["eval"]["test"]) == {"pseudo_perplexity", "loss", "accuracy", "masked_tokens"}
    assert row["train"]["best_step"] == 2


def test_a_teacher_with_a_head_is_measured_and_handed_over(material: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher", task="masked_lm")
    console = recording()
    summary = run(write_config(tmp_path / "masked.yaml", with_teacher(material, tmp_path)), console=console)
    given, row = summary.to_dict()["stages"]
    assert given["eval"]["test"]["loss"] == pytest.approx(row["eval"]["test"]["teacher_loss"], rel=1e-6)
    assert "decoder_bias and transform and transform_norm copied" in console.export_text()


def test_a_teacher_of_other_tokens_is_refused(material: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher", task="masked_lm", pieces=[*PIECES[:5], "other", *PIECES[6:]])
    error = survey_error(tmp_path, with_teacher(material, tmp_path))
    assert "differ: token 10 is " in error


def test_text_of_which_nothing_is_masked(material: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("?\n\n!\n")
    raw = masked_config(material, tmp_path / "run")
    raw["data"]["validation"] = {"path": str(tmp_path / "short.txt")}
    assert "short.txt: the text is too short: not one of its tokens" in survey_error(tmp_path, raw)


def write_teacher(directory: Path, *, task: str, pieces: list[str] | None = None) -> None:
    fields = {**SHAPE, "model_type": "bert", "vocab_size": 25}
    model = models.build({k: v for k, v in fields.items() if k != "architecture"}, task=task)
    models.save_pretrained(model, model.init(jax.random.key(0)), directory)
    write_piece_tokenizer(directory, pieces)


def with_teacher(material: Path, directory: Path) -> dict[str, Any]:
    """The student's stage alone, with two steps and a given teacher."""
    raw = masked_config(material, directory / "run")
    stage = {**raw["stages"][1], "teacher": {"pretrained": str(directory / "teacher")}}
    stage["train"] = {**stage["train"], "steps": 2}
    return {**raw, "stages": [stage]}


def survey_error(directory: Path, raw: dict[str, Any]) -> str:
    with pytest.raises(JaxdistillError) as error:
        Preparation(build_chain(load_run(write_config(directory / "masked.yaml", raw))), recording()).survey()
    return str(error.value)


def recording() -> Console:
    return Console(record=True, width=200, file=io.StringIO())
