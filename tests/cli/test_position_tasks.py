"""`predict`, `evaluate` and `export` of token classifiers and of models that answer questions, untrained ones."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifier import write_classifier

from jaxdistill import models
from jaxdistill.data.tags import entities, entity_scores
from jaxdistill.train.answers import squad_scores

TAGS = ("O", "B-GOOD", "I-GOOD")
CONLL = "the O\nfilm O\nwas O\nvery B-GOOD\ngood I-GOOD\n\na O\nplot B-GOOD\n"
CONTEXT = "the film was very good, but the plot is bad."
ASKED = {"id": "x", "question": "is the film good", "context": CONTEXT}
ANSWERS = [{"text": "very good", "answer_start": CONTEXT.index("very")}]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("tagger") / "m", labels=TAGS, task="token_classification")


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("answerer") / "m", labels=None, task="question_answering")


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_words_come_back_with_tags(jaxdistill: Any, tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "the film was good\n\nzebra plot\n")
    result = jaxdistill("predict", tagger)
    assert result.status == 0, result.err
    lines = result.out.split("\n")
    assert [line.partition("\t")[0] for line in lines] == [
        "the",
        "film",
        "was",
        "good",
        "",
        "",
        "zebra",
        "plot",
        "",
        "",
    ]
    assert {line.partition("\t")[2] for line in lines if line} <= set(TAGS)
    stdin(monkeypatch, "the film was good\n\nzebra plot\n")
    told = [json.loads(line) for line in jaxdistill("predict", tagger, "--json").out.splitlines()]
    assert told[0]["words"] == ["the", "film", "was", "good"]
    assert [f"{word}\t{tag}" for word, tag in zip(told[0]["words"], told[0]["tags"], strict=True)] == lines[:4]
    assert all(1 / 3 <= probability <= 1 for probability in told[0]["probabilities"])
    assert told[1]["words"] is None
    assert [(each["type"], each["start"], each["end"]) for each in told[0]["entities"]] == entities(told[0]["tags"])


def test_questions_come_back_with_parts_of_their_context(jaxdistill: Any, answerer: Path) -> None:
    long = ASKED | {"context": CONTEXT + " and the plot was a very great film" * 4}
    result = jaxdistill("predict", answerer, "--json", json.dumps(ASKED), json.dumps(long))
    assert result.status == 0, result.err
    for asked, told in zip((ASKED, long), map(json.loads, result.out.splitlines()), strict=True):
        assert told["answer"] == asked["context"][told["start"] : told["end"]] != ""
        assert 0 < told["score"] <= 1
        assert (told["id"], told["question"]) == ("x", ASKED["question"])
    text = jaxdistill("predict", answerer, json.dumps(ASKED)).out.rstrip("\n").split("\t")
    assert text[::2] == [json.loads(result.out.splitlines()[0])["answer"], ASKED["question"]]
    nothing = jaxdistill("predict", answerer, "--json", "--null-threshold", "-1000", json.dumps(ASKED))
    assert json.loads(nothing.out)["answer"] == ""


@pytest.mark.parametrize(("line", "reason"), [("what", "not JSON"), ('{"question": "q"}', "missing text")])
def test_what_is_no_question_is_named(jaxdistill: Any, answerer: Path, line: str, reason: str) -> None:
    result = jaxdistill("predict", answerer, line)
    assert result.status == 2
    assert f"text 1: {reason}" in result.err


def test_options_of_other_models_are_refused(jaxdistill: Any, tagger: Path, answerer: Path) -> None:
    assert "is a token classifier, for which --all means nothing" in jaxdistill("predict", tagger, "--all", "a").err
    assert "--truncate means nothing" in jaxdistill("predict", answerer, "--truncate", "{}").err
    assert "--null-threshold means nothing" in jaxdistill("predict", tagger, "--null-threshold", "0", "a").err
    assert "--label means nothing" in jaxdistill("evaluate", answerer, "--data", "x.json", "--label", "y").err


def test_a_tagger_is_measured_by_entities(jaxdistill: Any, tagger: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text(CONLL)
    result = jaxdistill("evaluate", tagger, "--data", tmp_path / "dev.txt", "--teacher", tagger, "--json")
    assert result.status == 0, result.err
    measured = json.loads(result.out)
    told = jaxdistill("predict", tagger, "--json", "the film was very good", "a plot").out.splitlines()
    guess = [json.loads(line)["tags"] for line in told]
    truth = [["O", "O", "O", "B-GOOD", "I-GOOD"], ["O", "B-GOOD"]]
    expected = entity_scores(truth, guess)
    assert {name: measured[name] for name in expected} == expected
    right = [a == b for pair in zip(truth, guess, strict=True) for a, b in zip(*pair, strict=True)]
    assert measured["accuracy"] == np.mean(right)
    assert measured["agreement"] == 1.0
    assert measured["kl"] < 1e-9
    assert "precision" in jaxdistill("evaluate", tagger, "--data", tmp_path / "dev.txt").out


def test_answers_are_measured_by_their_text(jaxdistill: Any, answerer: Path, tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([ASKED | {"answers": ANSWERS}, ASKED | {"answers": []}]))
    result = jaxdistill("evaluate", answerer, "--data", path, "--teacher", answerer, "--json")
    assert result.status == 0, result.err
    measured = json.loads(result.out)
    told = json.loads(jaxdistill("predict", answerer, "--json", "--null-threshold", "0", json.dumps(ASKED)).out)
    expected = squad_scores([told["answer"]] * 2, [["very good"], []])
    assert {name: measured[name] for name in expected} == expected
    assert measured["agreement"] == 1.0
    assert measured["examples"] == 2


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_an_export_is_the_same_model(jaxdistill: Any, tagger: Path, answerer: Path, tmp_path: Path, task: str) -> None:
    source = tagger if task == "token_classification" else answerer
    assert jaxdistill("export", source, tmp_path / "out").status == 0
    assert models.task_from_hf(tmp_path / "out") == task
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"pipeline_tag: {task.replace('_', '-')}" in card
    assert ("`B-GOOD`" in card) == (task == "token_classification")
