"""Configurations: from Hugging Face's own and from plain fields; every contradiction named."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models.config import config_to_hf

DISTILBERT = {"model_type": "distilbert", "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
NAMED = {"model_type": "bert", "id2label": {0: "a", 1: "b"}}


@pytest.mark.parametrize(("name", "theirs"), [("bert", "BertConfig"), ("distilbert", "DistilBertConfig")])
def test_defaults_are_those_of_transformers(name, theirs):
    import transformers

    assert models.config_from_hf({"model_type": name}) == models.config_from_hf(
        getattr(transformers, theirs)().to_dict()
    )


def test_roberta_defaults_are_those_of_its_published_models():
    """Not of transformers' RobertaConfig, which copies BERT's sizes; the published ones write every field."""
    config = models.config_from_hf({"model_type": "roberta"})
    assert (config.layer_norm_eps, config.pad_token_id, config.type_vocab_size) == (1e-5, 1, 1)
    assert (config.vocab_size, config.max_position_embeddings) == (50265, 514)


def test_distilbert_under_either_names():
    theirs = models.config_from_hf(DISTILBERT | {"dropout": 0.2, "attention_dropout": 0.3, "seq_classif_dropout": 0.4})
    bert_names = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    bert_names |= {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    assert models.config_from_hf({"model_type": "distilbert", **bert_names, "classifier_dropout": 0.4}) == theirs
    assert theirs.type_vocab_size == 0


GOOGLES = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


def test_old_files_that_do_not_say_their_architecture():
    """Google's own config.json, and those of the library's first versions, which only name a class."""
    assert models.config_from_hf(GOOGLES) == models.config_from_hf(GOOGLES | {"model_type": "bert"})
    for class_name, model_type in (
        ("RobertaForMaskedLM", "roberta"),
        ("BertModel", "bert"),
        ("DistilBertForSequenceClassification", "distilbert"),
    ):
        assert models.config_from_hf({"architectures": [class_name]}).model_type == model_type
    for unknown in ({}, {"hidden_size": 8}, GOOGLES | {"architectures": ["BertGenerationEncoder"]}):
        with pytest.raises(ModelError, match="model_type is None"):
            models.config_from_hf(unknown)


def test_a_position_type_that_is_null_is_the_ordinary_one():
    assert models.config_from_hf({"model_type": "bert", "position_embedding_type": None}).model_type == "bert"


@pytest.mark.parametrize("raw", [DISTILBERT, {"model_type": "roberta"}, NAMED])
def test_written_and_read_back(tmp_path, raw):
    config = models.config_from_hf(raw)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config, task="classification")))
    assert models.config_from_hf(tmp_path) == config


def test_labels():
    generic = {"model_type": "bert", "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}
    assert (models.config_from_hf(generic).num_labels, models.config_from_hf(generic).id2label) == (3, None)
    named = models.config_from_hf({"model_type": "bert", "id2label": {"1": "good", "0": "bad"}})
    assert named.id2label == ("bad", "good")
    assert models.build(named, num_labels=3).config.id2label is None
    assert models.build(named, num_labels=2).config.id2label == ("bad", "good")


def test_positions():
    assert models.positions(models.config_from_hf({"model_type": "roberta"})) == 512
    assert models.positions(models.config_from_hf({"model_type": "bert"})) == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'.*bert, bert_hash, distilbert, roberta"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 is not divisible by num_attention_heads=4"),
        ({"hidden_size": "wide"}, "hidden_size='wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_act": "swish"}, "hidden_act='swish'.*gelu"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0"),
        ({"layer_norm_eps": 0}, "layer_norm_eps=0"),
        ({"projections": 5}, "projections=5 is only for bert_hash"),
        ({"model_type": "bert_hash", "projections": 0}, "projections=0"),
        ({"model_type": "distilbert", "dim": 32, "hidden_size": 64}, "dim=32 contradicts hidden_size=64"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"0": "a", "1": "a"}}, "names a label twice"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels=3 contradicts"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "leaves RoBERTa no position"),
    ],
)
def test_contradictions(change, message):
    with pytest.raises(ModelError, match=message):
        models.config_from_hf({"model_type": "bert", **change})


def test_all_problems_at_once(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": -1, "hidden_act": "x"}))
    with pytest.raises(ModelError) as error:
        models.config_from_hf(tmp_path)
    assert all(part in str(error.value) for part in ("vocab_size=-1", "hidden_act='x'", str(tmp_path)))


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_config_that_is_no_json_object(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match="JSON"):
        models.config_from_hf(tmp_path)


@pytest.mark.parametrize("task", ["causal_lm", "multiple_choice", "regression"])
def test_other_tasks_name_the_supported_ones(task):
    with pytest.raises(ModelError, match="classification, masked_lm"):
        models.build({"model_type": "bert"}, task=task)


def test_other_refusals():
    with pytest.raises(ModelError, match="float16"):
        models.build({"model_type": "bert"}, dtype=jnp.float16)
    with pytest.raises(ModelError, match="num_labels"):
        models.build({"model_type": "bert"}, num_labels=0)
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        models.build({"model_type": "bert", "tie_word_embeddings": False}, task="masked_lm")


def test_models_are_hashable_and_compare_by_value():
    config = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}
    assert len({models.build(config), models.build(config), models.build(config, num_labels=3)}) == 2
