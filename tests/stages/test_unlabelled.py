"""Text without labels: the teachers label it, label terms never count it, and what is measured stays out of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from rich.console import Console
from tiny_chain import BAD, GOOD, PLAIN, chain_config, run, write_config

from jaxdistill.config import build_chain, load_run
from jaxdistill.data import TokenizedDataset
from jaxdistill.stages.classification import Classification, ClassificationSurvey
from jaxdistill.stages.loading import Survey
from jaxdistill.stages.prepare import Preparation


@pytest.fixture
def config(material: Path, tmp_path: Path) -> Path:
    """The tiny chain with a file of text, one row of which is in the test set, and the vocabulary."""
    with (material / "test.csv").open(newline="", encoding="utf-8") as file:
        measured = next(csv.DictReader(file))["sentence"]
    with (tmp_path / "more.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["body", "label"], *([f"the plot was {word}", "nonsense"] for word in GOOD)])
        csv.writer(file).writerow([measured.upper() + " ", "nonsense"])
    raw = chain_config(material, tmp_path / "run")
    raw["data"]["unlabelled"] = [{"path": str(tmp_path / "more.csv"), "text": ["body"]}, {"vocabulary": True}]
    raw["stages"] = [raw["stages"][0] | {"train": {"steps": 4}}, raw["stages"][1], raw["stages"][3]]
    return write_config(tmp_path / "chain.yaml", raw)


def dataset(
    preparation: Preparation, survey: Survey, split: Literal["train", "validation", "test"]
) -> TokenizedDataset:
    assert isinstance(preparation.task, Classification)
    assert isinstance(survey, ClassificationSurvey)
    found = preparation.task.dataset(survey, split)
    assert found is not None
    return found


def test_stages_with_a_teacher_train_on_it_and_the_others_do_not(config: Path) -> None:
    preparation = Preparation(build_chain(load_run(config, [])), Console(quiet=True), untrained=True)
    surveys = {survey.stage.key: survey for survey in preparation.survey()}
    words = len([*GOOD, *BAD, *PLAIN]) - 1  # "a" is a letter
    sizes = {key: len(dataset(preparation, survey, "train")) for key, survey in surveys.items()}
    assert sizes == {"teacher": 160, "assistant": 160 + len(GOOD) + words, "scratch": 160}
    train = dataset(preparation, surveys["assistant"], "train")
    assert (train.labels[:160] >= 0).all()
    assert (train.labels[160:] == -100).all()
    assert len(train.encodings[0]) == len(train.lengths) == len(train)
    assert (np.diff(train.encodings[0].offsets)[-words:] == 3).all()
    assert len(dataset(preparation, surveys["assistant"], "validation")) == 48
    assert len(dataset(preparation, surveys["assistant"], "test")) == 48


@pytest.mark.slow
@pytest.mark.parametrize("cache", [pytest.param("off", marks=pytest.mark.long), "memory"])
def test_a_chain_with_unlabelled_text_runs(config: Path, cache: str) -> None:
    summary = run(config, f"teacher_cache={cache}", "stages.1.train.epochs=1").to_dict()
    teacher, assistant, scratch = summary["stages"]
    assert teacher["train"]["steps"] == 4
    assert assistant["train"]["examples"] == 160 + len(GOOD) + len([*GOOD, *BAD, *PLAIN]) - 1
    assert scratch["train"]["examples"] == 320


def test_variants_of_the_training_text_are_taught_without_labels(material: Path, tmp_path: Path) -> None:
    raw = chain_config(material, tmp_path / "run")
    raw["data"]["augment"] = {"copies": 3}
    chain = build_chain(load_run(write_config(tmp_path / "chain.yaml", raw), []))
    preparation = Preparation(chain, Console(quiet=True), untrained=True)
    sizes = {}
    for survey in preparation.survey():
        found = dataset(preparation, survey, "train")
        sizes[survey.stage.key] = [int((found.labels >= 0).sum()), len(found)]
    assert sizes["teacher"] == sizes["scratch"] == [160, 160]
    assert sizes["assistant"][0] == 160
    assert 2 * 160 < sizes["assistant"][1] <= 4 * 160
