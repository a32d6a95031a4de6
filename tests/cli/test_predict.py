"""`jaxdistill predict`: labels and probabilities of arguments and of stdin, in order, whatever the batch."""

from __future__ import annotations

import functools
import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_classifier import VOCABULARY, write_classifier

from jaxdistill import models
from jaxdistill.cli.prediction import predict_lines
from jaxdistill.errors import DataError, ModelError
from jaxdistill.inference import Classifier

TEXTS = [
    "the film was good",
    "awful",
    "a very very dull plot , and a bad film !",
    "great",
    "the plot is fine but dull .",
]


@functools.cache
def forward(directory: Path):
    """The model's own forward pass, compiled once per length."""
    model, params = models.from_pretrained(directory)
    return jax.jit(lambda batch: model.apply(params, batch)["logits"])


@functools.cache
def probabilities(directory: Path, text: str, pair: str | None = None) -> np.ndarray:
    """Of one text that is neither padded nor batched: what every batching must give."""
    ids = [VOCABULARY.index(word) for word in ["[CLS]", *text.split(), "[SEP]"]]
    types = [0] * len(ids)
    if pair is not None:
        more = [VOCABULARY.index(word) for word in [*pair.split(), "[SEP]"]]
        ids, types = ids + more, types + [1] * len(more)
    batch = {name: jnp.asarray([value], jnp.int32) for name, value in (("input_ids", ids), ("token_type_ids", types))}
    logits = np.asarray(forward(directory)({**batch, "attention_mask": jnp.ones_like(batch["input_ids"])})[0])
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    """Sets what the command reads."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return put


def test_arguments_are_labelled_in_order_with_the_models_own_probabilities(jaxdistill, classifier):
    result = jaxdistill("predict", classifier, "--json", "--all", *TEXTS)
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        expected = probabilities(classifier, row["text"])
        assert list(row["probabilities"].values()) == pytest.approx(list(expected), abs=1e-5)
        assert row["label"] == ("negative", "positive")[expected.argmax()]
        assert row["probability"] == pytest.approx(expected.max(), abs=1e-5)


def test_lines_of_stdin_come_back_one_for_one(jaxdistill, classifier, stdin):
    stdin("good\n\n  \r\nawful plot\r\nthé film".encode())
    lines = jaxdistill("predict", classifier).out.split("\n")
    assert lines[1:3] == ["", ""]
    assert [line.split("\t")[2] for line in (lines[0], *lines[3:5])] == ["good", "awful plot", "thé film"]
    label, probability, _ = lines[0].split("\t")
    expected = probabilities(classifier, "good")
    assert label == ("negative", "positive")[expected.argmax()]
    assert probability == f"{expected.max():.4f}"


@pytest.mark.parametrize(("batch_size", "at_once"), [(1, 1), (8, 3), (8, 100)])
def test_batches_and_chunks_change_nothing(classifier, batch_size, at_once):
    model = Classifier(classifier, batch_size=batch_size)
    lines = enumerate(TEXTS * 3, start=1)
    found = list(predict_lines(model, lines, source="x", unit="line", pair=False, at_once=at_once))
    assert [text for text, _ in found] == TEXTS * 3
    for text, prediction in found:
        assert prediction is not None
        assert prediction.probability == pytest.approx(probabilities(classifier, text).max(), abs=1e-5)


def test_a_stream_is_answered_before_it_ends(classifier):
    def endless():
        number = 0
        while True:
            number += 1
            yield number, "good"

    found = predict_lines(Classifier(classifier), endless(), source="x", unit="line", pair=False, at_once=4)
    assert [next(found)[0] for _ in range(6)] == ["good"] * 6


def test_pairs_are_two_texts_with_a_tab_between(jaxdistill, classifier):
    row = json.loads(jaxdistill("predict", classifier, "--pair", "--json", "good\tbad").out)
    assert row["probability"] == pytest.approx(probabilities(classifier, "good", "bad").max(), abs=1e-5)
    missing = jaxdistill("predict", classifier, "--pair", "good film")
    assert missing.status == 2
    assert "text 1: no TAB" in missing.err


def test_a_text_of_several_lines_stays_on_one_line_of_output(jaxdistill, classifier):
    assert jaxdistill("predict", classifier, "good\nfilm").out.endswith("\tgood film\n")


def test_a_long_text_is_refused_by_its_number_or_cut_when_told_to(jaxdistill, classifier, stdin):
    long = " ".join(["good"] * 40)
    stdin(f"fine\n{long}\n".encode())
    refused = jaxdistill("predict", classifier)
    assert refused.status == 2
    assert "stdin: 1 bad row of 2 (line 2: 42 tokens); more than 32 tokens" in refused.err
    cut = json.loads(jaxdistill("predict", classifier, "--truncate", "--json", long).out)
    expected = probabilities(classifier, " ".join(["good"] * 30))
    assert cut["probability"] == pytest.approx(expected.max(), abs=1e-5)


def test_three_tokens_are_enough(jaxdistill, classifier):
    cut = json.loads(jaxdistill("predict", classifier, "--truncate", "--max-length", "3", "--json", "good film").out)
    assert cut["probability"] == pytest.approx(probabilities(classifier, "good").max(), abs=1e-5)


def test_a_line_in_is_a_line_out_whatever_is_in_it(jaxdistill, classifier, stdin):
    stdin("\ufeffgood\u2028film\x85plot\x1cfine\u2029\n".encode())
    (line,) = jaxdistill("predict", classifier, "--json").out.splitlines()
    assert json.loads(line)["text"] == "good\u2028film\x85plot\x1cfine\u2029"
    stdin("good\u2028film\x85plot\x1cfine\u2029\n".encode())
    (line,) = jaxdistill("predict", classifier).out.splitlines()
    assert line.endswith("\tgood film plot fine")


def test_what_is_not_utf8_is_named_by_its_line(jaxdistill, classifier, stdin):
    stdin(b"good\n\xff\xfe\n")
    result = jaxdistill("predict", classifier)
    assert result.status == 2
    assert "stdin, line 2: not UTF-8" in result.err
    assert jaxdistill("predict", classifier, "good", "\udcff").err == (
        "error: arguments, text 2: not UTF-8; convert it first\n"
    )


def test_a_model_without_names_is_answered_in_numbers(tmp_path):
    model = Classifier(write_classifier(tmp_path / "m", labels=None))
    assert model.labels == ("0", "1")
    assert model.predict(["good"])[0].label in ("0", "1")


def test_no_text_at_all_gives_no_logits(classifier):
    model = Classifier(classifier)
    assert model.logits([]).shape == (0, 2)
    assert model.predict([]) == []


def test_a_model_without_a_classifier_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has no trained classifier"):
        Classifier(write_classifier(tmp_path / "m", task="masked_lm"))


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="ids up to"):
        Classifier(write_classifier(tmp_path / "m", vocab_size=len(VOCABULARY) - 1))


def test_a_length_beyond_the_positions_is_refused(classifier):
    with pytest.raises(ModelError, match="32 positions"):
        Classifier(classifier, max_length=33)
    with pytest.raises(DataError, match="more than 8 tokens"):
        Classifier(classifier, max_length=8).logits(["good"] * 3 + ["good " * 7])
