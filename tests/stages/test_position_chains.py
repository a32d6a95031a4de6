"""Chains of token classifiers and of answerers: what they leave, that they resume, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_chain import BAD, GOOD, PLAIN, TINY, assert_same_params, chain_config, run, write_config

from jaxdistill import models
from jaxdistill.cli.evaluation import Options, evaluate_model
from jaxdistill.config import build_chain, load_run
from jaxdistill.errors import ConfigError, DataError, ModelError
from jaxdistill.stages import check
from jaxdistill.stages.prepare import Preparation

pytestmark = pytest.mark.slow

NAMES = ("O", "B-BAD", "I-BAD", "B-GOOD", "I-GOOD")


def sentence(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Plain words with an entity of good words and one of bad ones."""
    words, tags = [], []
    for kind, choices in rng.permutation([("GOOD", 0), ("BAD", 1)]):
        plain = [str(word) for word in rng.choice(PLAIN, rng.integers(1, 4))]
        named = [str(word) for word in rng.choice([GOOD, BAD][int(choices)], rng.integers(1, 3), replace=False)]
        words += plain + named
        tags += ["O"] * len(plain) + [f"B-{kind}", *[f"I-{kind}"] * (len(named) - 1)]
    return words, tags


def write_conll(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = ["\n".join(map("\t".join, zip(*sentence(rng), strict=True))) for _ in range(rows)]
    path.write_text("\n\n".join(made) + "\n", encoding="utf-8")


def write_squad(path: Path, rows: int, seed: int) -> None:
    """Which words are good, or bad; of every eighth context nobody says."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for index in range(rows):
        words, tags = sentence(rng)
        kind = ["GOOD", "BAD"][index % 2]
        question = {"id": f"q{index}", "question": f"the {['good', 'bad'][index % 2]}", "answers": []}
        if index % 8:
            places = [place for place, tag in enumerate(tags) if tag.endswith(kind)]
            answer = " ".join(words[places[0] : places[-1] + 1])
            start = len(" ".join([*words[: places[0]], ""]))
            question["answers"] = [{"text": answer, "answer_start": start}]
        else:
            words = [word for word, tag in zip(words, tags, strict=True) if not tag.endswith(kind)]
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    path.write_text(json.dumps({"version": "2.0", "data": [{"paragraphs": paragraphs}]}), encoding="utf-8")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("positions")
    for seed, (split, rows) in enumerate([("train", 96), ("dev", 32)]):
        write_conll(directory / f"{split}.txt", rows, seed)
        write_squad(directory / f"{split}.json", rows, seed)
    return directory


def config(material: Path, written: Path, output: Path, task: str) -> dict[str, Any]:
    """A pretrained teacher, its student by features too, and a student of both."""
    made = chain_config(material, output)
    suffix = ".txt" if task == "token_classification" else ".json"
    made["data"] = {
        "task": task,
        "train": {"path": str(written / f"train{suffix}")},
        "validation": {"path": str(written / f"dev{suffix}")},
        "max_length": 18,
    }
    if task == "question_answering":
        made["data"] |= {"max_length": 12, "doc_stride": 4}  # the longest contexts need two windows
    train = {"steps": 16, "batch_size": 16, "learning_rate": 5e-3, "log_every": 8}
    student = {"architecture": "bert", **TINY, "num_hidden_layers": 1}
    loss = [
        {"type": "forward_kl", "weight": 0.7, "temperature": 2.0},
        {"type": "cross_entropy", "weight": 0.3},
        {"type": "hidden_state_mse", "weight": 0.1},
    ]
    made["stages"] = [
        {
            "name": "teacher",
            "teacher": None,
            "student": {"pretrained": str(material / "encoder")},
            "train": {**train, "steps": 80},
            "evaluate": {"every": 40},
        },
        {"name": "student", "student": student, "train": train, "loss": loss, "checkpoint": {"every": 5, "keep": 9}},
        {"name": "both", "teacher": ["teacher", "student"], "student": student, "train": train},
    ]
    return made


@pytest.fixture(
    scope="session", params=["token_classification", pytest.param("question_answering", marks=pytest.mark.long)]
)
def finished(request, material: Path, written: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp(request.param) / "run"
    run(write_config(output.parent / "run.yaml", config(material, written, output, request.param)))
    return request.param, output


def test_the_chain_leaves_what_it_promises(finished: tuple[str, Path]) -> None:
    task, output = finished
    rows = {row["key"]: row for row in json.loads((output / "summary.json").read_text())["stages"]}
    assert list(rows) == ["teacher", "student", "both"]
    quality = {"precision", "recall", "accuracy"} if task == "token_classification" else {"exact_match"}
    for row in rows.values():
        measured = row["eval"]["validation"]
        closeness = {"kl", "agreement"} if row["teacher"] else set()
        assert set(measured) == {"f1", "loss"} | quality | closeness
        assert row["train"]["skipped_steps"] == 0
    teacher = rows["teacher"]["eval"]["validation"]
    logged = [json.loads(line) for line in (output / "stages" / "teacher" / "metrics.jsonl").open()]
    losses = [row["loss"] for row in logged if row["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    assert teacher["f1"] > 0.2
    assert rows["student"]["retention"]["validation"] == rows["student"]["eval"]["validation"]["f1"] / teacher["f1"]
    page = (output / "report.html").read_text()
    assert ("exact match" in page) == (task == "question_answering")
    assert ("recall" in page) == (task == "token_classification")
    student = output / "stages" / "student" / "student"
    assert models.task_from_hf(student) == task
    model, _ = models.from_pretrained(student, task=task)
    assert model.config.id2label == (NAMES if task == "token_classification" else None)


def test_an_interrupted_stage_ends_the_same(finished, material: Path, written: Path, tmp_path: Path) -> None:
    """Of one stage the record and the newest checkpoints are lost: bitwise the same parameters."""
    task, whole = finished
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    stage = output / "stages" / "student"
    (stage / "stage.json").unlink()
    for path in (stage / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > 10:
            shutil.rmtree(path)
    console = Console(record=True, width=200)
    run(write_config(tmp_path / "run.yaml", config(material, written, output, task)), console=console)
    assert "continues at step" in console.export_text()
    assert_same_params(whole, output, ["student"])


def test_evaluate_measures_what_the_run_did(finished: tuple[str, Path]) -> None:
    """A stage by its name, on the data of its run, beside its teacher."""
    _, output = finished
    rows = {row["key"]: row for row in json.loads((output / "summary.json").read_text())["stages"]}
    found = evaluate_model(Options(f"{output}:student", teacher=f"{output}:teacher"))
    expected = rows["student"]["eval"]["validation"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["teacher_f1"] == pytest.approx(rows["teacher"]["eval"]["validation"]["f1"])
    assert found["retention"] == pytest.approx(rows["student"]["retention"]["validation"])


@pytest.mark.long
def test_a_mesh_changes_nothing(material: Path, written: Path, tmp_path: Path) -> None:
    """Trained and measured over data and fsdp, as on one device."""
    measured = []
    for name, parallel in (("one", {"data": 1}), ("mesh", {"data": 2, "fsdp": 2})):
        made = config(material, written, tmp_path / name, "question_answering") | {"parallel": parallel}
        made["stages"] = made["stages"][:2]
        for stage in made["stages"]:
            stage["train"] = {**stage["train"], "steps": 4, "learning_rate": 1e-4}
        run(write_config(tmp_path / f"{name}.yaml", made))
        rows = json.loads((tmp_path / name / "summary.json").read_text())["stages"]
        measured.append(
            {(row["key"], kind): row["eval"]["validation"][kind] for row in rows for kind in ("loss", "f1")}
        )
    assert measured[1] == pytest.approx(measured[0], rel=1e-3)


@pytest.mark.long
def test_an_8_bit_teachers_drift_is_bounded(material: Path, written: Path, tmp_path: Path) -> None:
    """Measured where the task's labels are."""
    pytest.importorskip("qwix")
    task = "token_classification"
    directory = given_teacher(tmp_path / "teacher", material, task, NAMES)
    made = config(material, written, tmp_path / "run", task) | {"precision": {"teacher": "int8", "max_drift": 1e-12}}
    stage = made["stages"][2] | {"teacher": {"pretrained": str(directory)}}
    made["stages"] = [stage | {"train": {**stage["train"], "steps": 2}}]
    path = write_config(tmp_path / "run.yaml", made)
    with pytest.raises(ModelError, match=r"int8 weights.*mean KL .* more than precision.max_drift=1e-12"):
        run(path)
    run(path, "precision.max_drift=0.1")


def test_check_reads_everything_and_trains_nothing(material: Path, written: Path, tmp_path: Path) -> None:
    made = config(material, written, tmp_path / "run", "question_answering")
    made["stages"] = made["stages"][:1]
    checked = check(load_run(write_config(tmp_path / "run.yaml", made), []), console=Console(quiet=True))
    assert np.isfinite(checked["stages"][0]["loss"])
    assert not (tmp_path / "run").exists()


def given_teacher(directory: Path, material: Path, task: str, names: tuple[str, ...] | None) -> Path:
    """An untrained model with the chain's tokenizer, as a directory."""
    shutil.copytree(material / "encoder", directory)
    shape = json.loads((directory / "config.json").read_text())
    if names:
        shape["id2label"] = {str(index): name for index, name in enumerate(names)}
    else:
        shape.pop("id2label", None)
    model = models.build(shape, task=task)
    models.save_pretrained(model, jax.jit(model.init)(jax.random.key(0)), directory)
    return directory


@pytest.mark.parametrize(
    ("task", "teacher", "names", "error"),
    [
        ("token_classification", "classification", NAMES, r"is a model for classification.*data\.task is token_class"),
        ("token_classification", "token_classification", ("O", "B-X", "I-X", "B-Y", "I-Y"), "its labels are O, B-X"),
        ("token_classification", "token_classification", NAMES[:3], "has 3 labels, the data has 5"),
        ("question_answering", "masked_lm", None, "is a model for masked_lm"),
    ],
)
def test_a_teacher_for_something_else_is_refused(material, written, tmp_path, task, teacher, names, error) -> None:
    directory = given_teacher(tmp_path / "teacher", material, teacher, names)
    made = config(material, written, tmp_path / "run", task)
    made["stages"] = [made["stages"][1] | {"teacher": {"pretrained": str(directory)}}]
    with pytest.raises(ModelError, match=error):
        check(load_run(write_config(tmp_path / "run.yaml", made), []), console=Console(quiet=True))


def test_a_teacher_that_reads_other_tokens_is_refused(material, written, tmp_path) -> None:
    """Labels lie at the student's tokens, and so must everything a teacher says."""
    directory = given_teacher(tmp_path / "teacher", material, "token_classification", NAMES)
    state = json.loads((directory / "tokenizer.json").read_text())
    words = state["model"]["vocab"]
    words["film"], words["plot"] = words["plot"], words["film"]
    (directory / "tokenizer.json").write_text(json.dumps(state))
    made = config(material, written, tmp_path / "run", "token_classification")
    made["stages"] = [
        {**made["stages"][0], "teacher": {"pretrained": str(directory)}, "train": made["stages"][1]["train"]}
    ]
    with pytest.raises(ModelError, match=r"tokenizers .* differ: token \d+ is '(film|plot)'"):
        check(load_run(write_config(tmp_path / "run.yaml", made), []), console=Console(quiet=True))


def test_a_teachers_tags_are_put_in_the_datas_order(material, written, tmp_path) -> None:
    """By name: the classes of a teacher that counts them backwards are turned round."""
    directory = given_teacher(tmp_path / "teacher", material, "token_classification", NAMES[::-1])
    made = config(material, written, tmp_path / "run", "token_classification")
    made["data"]["label_names"] = list(NAMES)
    made["stages"] = [made["stages"][1] | {"teacher": {"pretrained": str(directory)}}]
    console = Console(record=True, width=200)
    chain = build_chain(load_run(write_config(tmp_path / "run.yaml", made), []))
    preparation = Preparation(chain, console, untrained=True)
    (survey,) = preparation.survey()
    loaded = preparation.task.teacher(survey.stage.teachers[0], survey)
    assert "classes put in the data's order (O, B-BAD, I-BAD, B-GOOD, I-GOOD)" in console.export_text()
    _, given = models.from_pretrained(directory, task="token_classification")
    np.testing.assert_array_equal(loaded.params["classifier"]["kernel"], given["classifier"]["kernel"][:, ::-1])


@pytest.mark.parametrize(
    ("task", "changes", "error"),
    [
        (
            "token_classification",
            {"text": ["sentence"]},
            "data.text: only classification, causal_lm and masked_lm read it",
        ),
        ("token_classification", {"doc_stride": 5}, "data.doc_stride: only question_answering reads it"),
        ("question_answering", {"label_names": ["O", "B"]}, "data.label_names: only classification and token_class"),
        ("question_answering", {"doc_stride": 20}, "data.doc_stride: windows of 12 tokens"),
    ],
)
def test_keys_of_other_tasks_are_refused(material, written, tmp_path, task, changes, error) -> None:
    made = config(material, written, tmp_path / "run", task)
    made["data"] |= changes
    with pytest.raises(ConfigError) as caught:
        load_run(write_config(tmp_path / "run.yaml", made), [])
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("teacher_cache", "memory", "got 'memory', and data.task is question_answering, for which there is no cache"),
        ("loss", [{"type": "logit_mse"}], "logit_mse compares as many classes"),
        ("loss", [{"type": "cross_entropy", "label_smoothing": 0.1}], "got label smoothing"),
        ("checkpoint", {"best": "precision"}, "got 'precision', which question_answering does not measure"),
    ],
)
def test_what_answers_have_no_use_for_is_refused(material, written, tmp_path, key, value, error) -> None:
    made = config(material, written, tmp_path / "run", "question_answering")
    made["stages"][1][key] = value
    with pytest.raises(ConfigError) as caught:
        load_run(write_config(tmp_path / "run.yaml", made), [])
    assert error in str(caught.value)


def test_bad_rows_are_found_before_anything_is_loaded(material, written, tmp_path) -> None:
    path = tmp_path / "train.txt"
    path.write_text((written / "train.txt").read_text() + "\nfilm B-FILM\nplot\n")
    made = config(material, written, tmp_path / "run", "token_classification")
    made["data"]["train"] = {"path": str(path)}
    with pytest.raises(DataError, match=r"train\.txt: 1 bad row of 97 .line \d+: line \d+ has a word without a tag"):
        check(load_run(write_config(tmp_path / "run.yaml", made), []), console=Console(quiet=True))


def test_what_is_left_out_and_cut_is_told(material, written, tmp_path) -> None:
    path = tmp_path / "train.txt"
    path.write_text((written / "train.txt").read_text() + "\nfilm B-FILM\nplot\n\n" + "film O\n" * 30)
    made = config(material, written, tmp_path / "run", "token_classification")
    made["data"] |= {"train": {"path": str(path)}, "on_bad_row": "skip"}
    made["stages"] = made["stages"][:1]
    console = Console(record=True, width=200)
    Preparation(build_chain(load_run(write_config(tmp_path / "run.yaml", made), [])), console).survey()
    told = console.export_text()
    assert "train.txt: 1 bad line(s) left out" in told
    assert "train.txt: 1 cut to 18 tokens (train)" in told
