"""One given teacher for stages whose data order the labels in other ways: its classes are put in each one's order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chain import BAD, GOOD, PLAIN, TINY, chain_config, run, write_config

WORDS = {"negative": BAD, "neutral": [], "positive": GOOD}
TEACHERS_ORDER = ["neutral", "positive", "negative"]
ORDERS = {"sorted": ["negative", "neutral", "positive"], "turned": ["positive", "negative", "neutral"]}


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Sentences of three kinds, their labels by name."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for index in range(rows):
            label = list(WORDS)[index % 3]
            telling = [str(word) for word in rng.choice(WORDS[label], 2)] if WORDS[label] else []
            words = [str(word) for word in rng.choice(PLAIN, rng.integers(3, 7))] + telling
            writer.writerow([" ".join(str(word) for word in rng.permutation(words)), label])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rows")
    for seed, (split, count) in enumerate([("train", 180), ("dev", 48), ("test", 48)]):
        write_rows(directory / f"{split}.csv", count, seed)
    return directory


def config(rows: Path, material: Path, output: Path, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A run on the three-class rows; a stage starts from the pretrained encoder unless it says otherwise."""
    made = chain_config(material, output)
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        made["data"][split] = {"path": str(rows / f"{name}.csv")}
    start = {"student": {"pretrained": str(material / "encoder")}}
    train = {"epochs": 12, "batch_size": 16, "learning_rate": 5e-3, "log_every": 20}
    made["stages"] = [{**start, "train": train, **stage} for stage in stages]
    return made


@pytest.fixture(scope="module")
def teacher(rows: Path, material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a trained classifier whose order is neither of the stages'."""
    output = tmp_path_factory.mktemp("teacher") / "run"
    stage = {"name": "teacher", "teacher": None, "data": {"label_names": TEACHERS_ORDER}}
    run(write_config(output.parent / "teacher.yaml", config(rows, material, output, [stage])))
    directory = output / "stages" / "teacher" / "student"
    names = json.loads((directory / "config.json").read_text())["id2label"]
    assert [names[str(index)] for index in range(3)] == TEACHERS_ORDER
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("cache", [pytest.param("off", marks=pytest.mark.long), "memory"])
def test_each_stage_is_taught_in_its_own_order(rows: Path, material: Path, teacher: Path, tmp_path: Path, cache: str):
    """The students start from the teacher and learn from it alone: a class out of place in either would show."""
    start = {"layers": "uniform", "embeddings": "copy"}
    student = {"architecture": "bert", **TINY, "max_position_embeddings": 64, "warm_start": start}
    stages = [
        {
            "name": name,
            "teacher": {"pretrained": str(teacher)},
            "student": student,
            "loss": [{"type": "forward_kl"}],
            "train": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3},
            "data": {"label_names": order},
            "teacher_cache": cache,
        }
        for name, order in ORDERS.items()
    ]
    path = write_config(tmp_path / "orders.yaml", config(rows, material, tmp_path / "run", stages))
    given, *students = run(path).rows
    assert given["given"]
    for row in (given, *students):
        assert row["eval"]["test"]["accuracy"] > 0.75, row["name"]  # in another stage's order it would be near 0
    for row in students:
        assert row["eval"]["test"]["agreement"] > 0.75
        exported = json.loads((tmp_path / "run" / "stages" / row["key"] / "student" / "config.json").read_text())
        assert list(exported["id2label"].values()) == ORDERS[row["name"]]


@pytest.mark.slow
def test_a_pretrained_student_keeps_what_its_classes_mean(rows: Path, material: Path, teacher: Path, tmp_path: Path):
    """One step at a vanishing rate leaves the classifier as it came, with its classes in the data's order."""
    stage = {
        "name": "student",
        "teacher": None,
        "student": {"pretrained": str(teacher)},
        "train": {"steps": 1, "batch_size": 16, "learning_rate": 1e-9},
        "data": {"label_names": ORDERS["turned"]},
    }
    made = config(rows, material, tmp_path / "run", [stage])
    (row,) = run(write_config(tmp_path / "run.yaml", made)).to_dict()["stages"]
    assert row["eval"]["test"]["accuracy"] > 0.75
