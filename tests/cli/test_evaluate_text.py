"""`jaxdistill evaluate` of a language model: perplexity on files, on a run's data, and beside a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from tiny_language_model import POSITIONS, VOCAB_SIZE, byte_tokenizer, write_language_model

from jaxdistill import models

PARAGRAPHS = ["It was a dark night.", "é", "The rain fell, and fell,\nand it would not stop for anyone at all.", "So."]
LENGTH = 16


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same tokens, with rows of padding in its vocabulary."""
    return write_language_model(
        tmp_path_factory.mktemp("models") / "other", seed=1, num_hidden_layers=1, vocab_size=VOCAB_SIZE + 5
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(PARAGRAPHS) + "\n")
    return path


def documents() -> list[list[int]]:
    return [[*byte_tokenizer()(text).input_ids, 2] for text in PARAGRAPHS]


def token_distributions(directory: Path, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [T, V] of all tokens that have one before them in their document, and the tokens.

    Each piece that rows of `length` cut from the documents is given to the model alone.
    """
    model, params = models.from_pretrained(directory, task="causal_lm")
    forward = jax.jit(lambda ids: model.apply(params, {"input_ids": ids})["logits"])
    found, expected, place = [], [], 0
    for ids in documents():
        start = 0
        while start < len(ids):
            end = min(len(ids), start + length - place % length)
            piece = jnp.asarray([[*ids[start:end], *[0] * (length - end + start)]], jnp.int32)
            logits = np.asarray(forward(piece)[0], np.float64)[:, :VOCAB_SIZE]
            following = ids[start + 1 : end + 1]
            found.append(logits[: len(following)])
            expected += following
            place, start = place + end - start, end
    logits = np.concatenate(found)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), np.asarray(expected)


def measured(jaxdistill, *arguments) -> dict:
    result = jaxdistill("evaluate", *arguments, "--json")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_perplexity_is_over_every_token_that_follows_another_in_its_document(jaxdistill, decoder, book):
    found = measured(jaxdistill, decoder, "--data", book, "--max-length", str(LENGTH), "--batch-size", "3")
    log_probabilities, expected = token_distributions(decoder, LENGTH)
    loss = -log_probabilities[np.arange(len(expected)), expected].mean()
    assert (found["documents"], found["tokens"], found["max_length"]) == (4, len(expected), LENGTH)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert found["accuracy"] == pytest.approx((log_probabilities.argmax(-1) == expected).mean())


def test_a_teacher_is_measured_on_the_same_sequences(jaxdistill, decoder, other, book):
    found = measured(jaxdistill, decoder, "--data", book, "--max-length", str(LENGTH), "--teacher", other)
    ours, expected = token_distributions(decoder, LENGTH)
    theirs, _ = token_distributions(other, LENGTH)
    teacher_loss = -theirs[np.arange(len(expected)), expected].mean()
    assert found["teacher_perplexity"] == pytest.approx(np.exp(teacher_loss), rel=1e-5)
    assert found["retention"] == pytest.approx(found["teacher_perplexity"] / found["perplexity"])
    assert found["kl"] == pytest.approx((np.exp(theirs) * (theirs - ours)).sum(-1).mean(), rel=1e-4)
    assert found["agreement"] == pytest.approx((theirs.argmax(-1) == ours.argmax(-1)).mean())


def test_tables_have_columns_of_text_or_of_prompt_and_completion(jaxdistill, decoder, tmp_path):
    rows = [{"q": "two and two?", "a": "four", "n": 1}, {"q": "", "a": "nothing", "n": 2}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = measured(jaxdistill, decoder, "--data", path, "--text", "a")
    assert whole["tokens"] == len("four") + 1 + len("nothing") + 1
    completions = measured(jaxdistill, decoder, "--data", path, "--text", "q", "--text", "a")
    assert completions["tokens"] == whole["tokens"]
    assert completions["loss"] != whole["loss"]
    assert "no column 'text'" in jaxdistill("evaluate", decoder, "--data", path).err


def test_bad_rows_are_refused_or_counted(jaxdistill, decoder, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\ngood\n  \nbetter\n")
    refused = jaxdistill("evaluate", decoder, "--data", path)
    assert refused.status == 2
    assert "bad row" in refused.err
    found = measured(jaxdistill, decoder, "--data", path, "--skip-bad-rows")
    assert (found["documents"], found["skipped_rows"]) == (2, 1)


def test_the_table_names_what_was_measured(jaxdistill, decoder, book):
    text = " ".join(jaxdistill("evaluate", decoder, "--data", book, "--teacher", decoder).out.split())
    tokens = sum(len(ids) - 1 for ids in documents())
    for word in (
        f"{tokens} tokens of 4 documents in sequences of 64",
        "perplexity",
        "teacher's perplexity",
        "100.0%",
        "KL",
    ):
        assert word in text


def test_a_stage_is_evaluated_on_its_own_runs_data(jaxdistill, decoder, book, tmp_path):
    run = tmp_path / "runs" / "r"
    write_language_model(run / "stages" / "student" / "student")
    (run / "summary.json").write_text(json.dumps({"name": "r", "stages": [{"name": "student", "key": "student"}]}))
    stage = {"name": "student", "teacher": None, "train": {"steps": 1}, "student": {"pretrained": str(decoder)}}
    source = {"path": str(book)}
    data = {"task": "causal_lm", "train": source, "validation": source, "max_length": LENGTH, "packing": "first_fit"}
    content = {"name": "r", "output_dir": str(run), "data": data, "stages": [stage]}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    found = measured(jaxdistill, f"{run}:student")
    assert (found["split"], found["max_length"]) == ("validation", LENGTH)
    by_config = measured(jaxdistill, decoder, "--config", run / "config.yaml")
    assert by_config["loss"] == found["loss"]
    shorter = measured(jaxdistill, decoder, "--config", run / "config.yaml", "--max-length", "8")
    assert shorter["loss"] != found["loss"]
    assert "data.test: the configuration has none" in jaxdistill("evaluate", f"{run}:student", "--split", "test").err


def test_options_of_the_other_kind_of_model_are_refused(jaxdistill, decoder, classifier, book, tmp_path):
    for option in (("--label", "stars"), ("--label-names", "a,b"), ("--truncate",)):
        result = jaxdistill("evaluate", decoder, "--data", book, *option)
        assert result.status == 2
        assert f"is a language model, for which {option[0]} means nothing" in result.err
    config = tmp_path / "c.yaml"
    stage = {"name": "s", "teacher": None, "train": {"steps": 1}, "student": {"pretrained": str(decoder)}}
    content = {"name": "c", "data": {"task": "causal_lm", "train": {"path": str(book)}}, "stages": [stage]}
    config.write_text(yaml.safe_dump(content))
    refused = jaxdistill("evaluate", classifier, "--config", config)
    assert refused.status == 2
    assert "its data is for causal_lm" in refused.err


def test_what_does_not_fit_is_said(jaxdistill, decoder, classifier, book, tmp_path):
    too_long = jaxdistill("evaluate", decoder, "--data", book, "--max-length", str(POSITIONS + 1))
    assert f"has {POSITIONS} positions" in too_long.err
    assert jaxdistill("evaluate", decoder, "--data", tmp_path / "nix.txt").status == 2
    alphabet = sorted(byte_tokenizer().get_vocab(), key=byte_tokenizer().get_vocab().get)[3:]
    tokens = byte_tokenizer(vocabulary=[alphabet[1], alphabet[0], *alphabet[2:]])
    stranger = write_language_model(tmp_path / "stranger", tokenizer=tokens)
    refused = jaxdistill("evaluate", decoder, "--data", book, "--teacher", stranger)
    assert refused.status == 2
    assert "token 3 is" in refused.err
    assert jaxdistill("evaluate", decoder, "--data", book, "--teacher", classifier).status == 2
