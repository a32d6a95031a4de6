"""A chain of language models, run to its end, interrupted and resumed."""

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
from tiny_text import SHAPE, SPECIAL, WORDS, text_config, write_text, write_word_tokenizer

from jaxdistill import models
from jaxdistill.config import build_chain, load_run
from jaxdistill.data import load_tokenizer, text
from jaxdistill.errors import JaxdistillError
from jaxdistill.stages.language_models import TextSurvey
from jaxdistill.stages.prepare import Preparation
from jaxdistill.train.evaluate_text import evaluate_text


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    for name, documents, seed in (("train", 300, 0), ("validation", 30, 1), ("test", 30, 2)):
        write_text(directory / f"{name}.txt", documents, seed)
    write_word_tokenizer(directory / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def trained(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    run(write_config(output.parent / "text.yaml", text_config(material, output)))
    return output


def rows(directory: Path) -> dict[str, Any]:
    stages = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["stages"]
    return {row["key"]: row for row in stages}


def test_what_is_measured(trained: Path) -> None:
    found = rows(trained)
    teacher, student = found["teacher"]["eval"], found["student"]["eval"]
    assert set(teacher["test"]) == {"perplexity", "loss", "accuracy", "tokens"}
    added = {"teacher_perplexity", "teacher_loss", "kl", "agreement"}
    assert set(student["test"]) == set(teacher["test"]) | added
    for split in ("validation", "test"):
        assert student[split]["tokens"] == teacher[split]["tokens"]
        assert student[split]["teacher_perplexity"] == pytest.approx(teacher[split]["perplexity"], rel=1e-6)
        assert teacher[split]["perplexity"] < 12  # 43 tokens, three of which may follow
        assert student[split]["perplexity"] < 25
        retention = teacher[split]["perplexity"] / student[split]["perplexity"]
        assert found["student"]["retention"][split] == pytest.approx(retention)
    lines = (trained / "stages" / "student" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [row for row in map(json.loads, lines) if row["kind"] == "validation"]
    assert [row["step"] for row in logged] == [10, 20, 30, 40]
    assert logged[-1]["kl"] < 0.7 * logged[0]["kl"]
    assert logged[-1]["perplexity"] < logged[0]["perplexity"]


def test_the_handed_on_student_is_the_one_measured(trained: Path, material: Path) -> None:
    model, params = models.from_pretrained(trained / "stages" / "student" / "student", task="causal_lm")
    run_config = load_run(trained / "config.yaml")
    tokenizer = load_tokenizer(trained / "stages" / "student" / "student")
    split = text.open_split(run_config.data, "test", tokenizer, sequence_length=32)
    assert split is not None
    again = evaluate_text(split.eval_batches(batch_size=3), params, student=model)
    measured = rows(trained)["student"]["eval"]["test"]
    assert again["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-5)
    assert again["tokens"] == measured["tokens"]


@pytest.mark.slow
def test_whole_logits_teach_the_same(trained: Path, material: Path, tmp_path: Path) -> None:
    config = text_config(material, tmp_path / "run")
    for stage in config["stages"]:
        stage["fused"] = "off"
    run(write_config(tmp_path / "text.yaml", config))
    for key, row in rows(tmp_path / "run").items():
        for name, value in rows(trained)[key]["eval"]["test"].items():
            assert row["eval"]["test"][name] == pytest.approx(value, rel=0.02, abs=0.01), (key, name)


@pytest.mark.slow
def test_killed_and_continued_is_bitwise_the_same(trained: Path, material: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = write_config(tmp_path / "text.yaml", text_config(material, output))
    for stage in ("teacher", "student"):
        process = start(config)
        deadline = time.monotonic() + 240
        saved = output / "stages" / stage / "checkpoints"
        while process.poll() is None and not list(saved.glob("[1-9]*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(config)
    assert_same_params(trained, output, keys=["teacher", "student"])


def test_a_teacher_of_other_tokens_is_refused_by_the_first_that_differs(material: Path, tmp_path: Path) -> None:
    words = [*WORDS[:5], "other", *WORDS[6:]]
    line = survey_error(material, tmp_path, write_teacher(tmp_path, vocab_size=43, words=words))
    assert "differ: token 8 is 'w5' in the first and 'other' in the second" in line


@pytest.mark.slow
def test_padded_vocabularies_are_cut_to_the_tokens_there_are(material: Path, tmp_path: Path) -> None:
    raw = with_teacher(text_config(material, tmp_path / "run"), write_teacher(tmp_path, vocab_size=64))
    raw["stages"][0]["student"] = {**SHAPE, "vocab_size": 48}
    chain = build_chain(load_run(write_config(tmp_path / "text.yaml", raw)))
    preparation = Preparation(chain, console := recording(), untrained=True)
    (survey,) = preparation.survey()
    assert isinstance(survey, TextSurvey)
    assert survey.vocab_size == len(SPECIAL) + len(WORDS)
    assert "vocabularies are padded differently" in console.export_text()
    (row,) = run(write_config(tmp_path / "text.yaml", raw)).to_dict()["stages"][1:]
    assert np.isfinite(row["eval"]["test"]["kl"])


def test_a_length_beyond_the_teacher_s_positions(material: Path, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path, vocab_size=43, max_position_embeddings=16)
    assert "16 positions" in survey_error(material, tmp_path, teacher)


def write_teacher(directory: Path, *, words: list[str] | None = None, **shape: Any) -> Path:
    fields = {**SHAPE, "model_type": "llama", **shape}
    model = models.build({k: v for k, v in fields.items() if k != "architecture"}, task="causal_lm")
    models.save_pretrained(model, model.init(jax.random.key(0)), directory / "teacher")
    write_word_tokenizer(directory / "teacher", words)
    return directory / "teacher"


def with_teacher(raw: dict[str, Any], teacher: Path) -> dict[str, Any]:
    stage = {**raw["stages"][1], "teacher": {"pretrained": str(teacher)}}
    stage["train"] = {**stage["train"], "steps": 2}
    return {**raw, "stages": [stage]}


def survey_error(material: Path, directory: Path, teacher: Path) -> str:
    raw = with_teacher(text_config(material, directory / "run"), teacher)
    with pytest.raises(JaxdistillError) as error:
        Preparation(build_chain(load_run(write_config(directory / "text.yaml", raw))), recording()).survey()
    return str(error.value)


def recording() -> Console:

    return Console(record=True, width=200, file=io.StringIO())


@pytest.mark.slow
def test_every_start_is_the_same_wherever_it_is_laid_out(trained: Path, material: Path, tmp_path: Path) -> None:
    """Drawn, pretrained and taken from a teacher: spread over a mesh as they are made, and whole."""
    teacher = {"pretrained": str(trained / "stages" / "teacher" / "student")}
    taken = {**SHAPE, "num_hidden_layers": 1, "warm_start": {"layers": "last", "embeddings": "copy"}}
    raw = text_config(material, tmp_path / "run")
    stages = [
        {**raw["stages"][1], "name": name, "teacher": teacher, "student": student}
        for name, student in (("drawn", SHAPE), ("given", teacher), ("taken", taken))
    ]

    def starts(**parallel: int) -> dict[str, Any]:
        config = write_config(tmp_path / "starts.yaml", {**raw, "stages": stages, "parallel": parallel})
        preparation = Preparation(build_chain(load_run(config)), Console(quiet=True))
        return {survey.stage.name: preparation.task.job(survey).initial_params() for survey in preparation.survey()}

    whole, spread = starts(data=1), starts(data=1, fsdp=2, tensor=2)
    jax.tree.map(np.testing.assert_array_equal, spread, whole)
    tables = {name: params["embeddings"]["word"] for name, params in spread.items()}
    assert {name: len(table.sharding.device_set) for name, table in tables.items()} == dict.fromkeys(tables, 4)
    assert not any(table.is_fully_replicated for table in tables.values())
