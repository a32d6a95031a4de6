"""`jaxdistill predict` of a language model: the tokens transformers would choose, whatever the batch."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_language_model import POSITIONS, VOCAB_SIZE, byte_tokenizer, write_language_model

from jaxdistill import models
from jaxdistill.errors import DataError, ModelError
from jaxdistill.inference import LanguageModel, is_language_model, unlabelled_rows

PROMPTS = ["The rain", "é", "It was a dark and stormy night; the rain", "x y z", "42"]
VARIANTS = {
    "llama, several ends": {"eos_token_id": [2, *range(40, 60)]},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    # transformers gives every tokenizer of a Qwen2 one more token
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": VOCAB_SIZE + 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
}


def rows(prompts: list[str]):
    return unlabelled_rows(list(enumerate(prompts, start=1)), source="prompts", unit="line", pair=False)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("models") / "decoder")


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(tmp_path, variant):
    torch = pytest.importorskip("torch")
    import transformers

    directory = write_language_model(tmp_path / "m", **VARIANTS[variant])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    found = LanguageModel(directory, batch_size=4).continuations(rows(PROMPTS), max_new_tokens=12)
    for prompt, continuation in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.no_grad():
            expected = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert list(continuation.token_ids) == expected.tolist()
        assert continuation.text == tokenizer.decode(expected, skip_special_tokens=True)
    if "several ends" in variant:
        assert {continuation.finished for continuation in found} == {True, False}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_batches_change_nothing(decoder, temperature):
    def continued(batch_size: int) -> list:
        model = LanguageModel(decoder, batch_size=batch_size)
        return model.continuations(rows(PROMPTS), max_new_tokens=9, temperature=temperature, seed=3)

    assert continued(1) == continued(8)


@pytest.mark.slow
def test_each_token_is_drawn_at_its_temperature(decoder):
    count, temperature = 1024, 2.0
    model = LanguageModel(decoder, batch_size=count)
    found = model.continuations(rows(["The rain"] * count), max_new_tokens=1, temperature=temperature, seed=1)
    drawn = np.bincount([continuation.token_ids[0] for continuation in found], minlength=VOCAB_SIZE) / count
    ids = jnp.asarray([byte_tokenizer()("The rain").input_ids], jnp.int32)
    expected = np.asarray(jax.nn.softmax(model.model.apply(model.params, {"input_ids": ids})["logits"][0, -1] / 2.0))
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected / count) + 2e-3).all()
    again = model.continuations(rows(["The rain"] * count), max_new_tokens=1, temperature=temperature, seed=2)
    assert found != again


def test_a_continuation_ends_with_the_positions(decoder):
    (found,) = LanguageModel(decoder).continuations(rows(["a" * (POSITIONS - 4)]), max_new_tokens=20)
    assert len(found.token_ids) == 3  # the first token is the one that begins a text
    assert not found.finished
    with pytest.raises(DataError, match=rf"line 1: {POSITIONS} tokens\); a prompt must have at least 1 token"):
        LanguageModel(decoder).continuations(rows(["a" * (POSITIONS - 1)]), max_new_tokens=1)


def test_the_end_a_tokenizer_puts_after_a_text_is_not_part_of_a_prompt(decoder, tmp_path):
    closing = write_language_model(tmp_path / "closing", tokenizer=byte_tokenizer(eos=True))
    found, expected = (
        LanguageModel(each).continuations(rows(PROMPTS), max_new_tokens=5) for each in (closing, decoder)
    )
    assert found == expected


def test_generation_settings_say_what_ends_a_text(decoder, tmp_path):
    (first, second, *_) = LanguageModel(decoder).continuations(rows(["x"]), max_new_tokens=8)[0].token_ids
    directory = write_language_model(tmp_path / "m")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [second]}))
    (found,) = LanguageModel(directory).continuations(rows(["x"]), max_new_tokens=8)
    assert found.token_ids == (first, second)
    assert found.finished
    (directory / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        LanguageModel(directory)


def test_the_space_before_the_next_word_is_kept(tmp_path):
    """A decoder of words drops the space before the first one: alone, a continuation would lose it."""
    import tokenizers
    import transformers

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"▁w{index}" for index in range(VOCAB_SIZE - 4))]
    table = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    directory = write_language_model(tmp_path / "m", tokenizer=wrapped)
    (found,) = LanguageModel(directory).continuations(rows(["w1 w2"]), max_new_tokens=2)
    assert found.text == "".join(words[index].replace("▁", " ") for index in found.token_ids)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    """Sets what the command reads."""

    def put(content: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode()), encoding="utf-8"))

    return put


def test_lines_of_stdin_come_back_one_for_one(jaxdistill, decoder, stdin):
    stdin("The rain\n\nx y z\n")
    result = jaxdistill("predict", decoder, "--max-new-tokens", "6", "--json")
    assert result.status == 0, result.err
    answers = [json.loads(line) for line in result.out.splitlines()]
    expected = LanguageModel(decoder).continuations(rows(["The rain", "", "x y z"][::2]), max_new_tokens=6)
    assert [answer["text"] for answer in answers] == ["The rain", "", "x y z"]
    assert [answers[0]["continuation"], answers[2]["continuation"]] == [found.text for found in expected]
    assert answers[1] == {"text": "", "continuation": None, "tokens": None, "finished": None}
    assert answers[0]["tokens"] == len(expected[0].token_ids)


def test_plain_output_is_a_line_a_prompt(jaxdistill, decoder):
    lines = jaxdistill("predict", decoder, "--max-new-tokens", "6", "The\nrain", "x").out.split("\n")
    assert len(lines) == 3
    assert lines[0].startswith("The rain\t")


def test_what_is_drawn_depends_on_the_seed_alone(jaxdistill, decoder):
    def drawn(*options: str) -> str:
        return jaxdistill("predict", decoder, "--max-new-tokens", "8", "--temperature", "2", *options, "x", "y").out

    assert drawn() == drawn("--seed", "0", "--batch-size", "1")
    assert drawn() != drawn("--seed", "5")


def test_options_of_the_other_kind_of_model_are_refused(jaxdistill, decoder, classifier):
    refused = jaxdistill("predict", decoder, "--pair", "--all", "x")
    assert refused.status == 2
    assert "is a language model, for which --pair, --all means nothing; leave it out" in refused.err
    refused = jaxdistill("predict", classifier, "--seed", "0", "x")
    assert refused.status == 2
    assert "is a classifier, for which --seed means nothing" in refused.err
    assert is_language_model(decoder)
    assert not is_language_model(classifier)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="ids up to"):
        LanguageModel(write_language_model(tmp_path / "m", vocab_size=VOCAB_SIZE - 1))


def test_a_length_beyond_the_positions_is_refused(decoder):
    with pytest.raises(ModelError, match=f"{POSITIONS} positions"):
        LanguageModel(decoder, max_length=POSITIONS + 1)
    assert models.positions(LanguageModel(decoder).model.config) == POSITIONS
