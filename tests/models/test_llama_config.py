"""Decoders' configurations: transformers' defaults, both spellings of RoPE, and every contradiction named."""

from __future__ import annotations

import json

import pytest

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models.config import config_to_hf

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def read(model_type="llama", **fields):
    return models.config_from_hf({"model_type": model_type, **fields})


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_defaults_are_those_of_transformers(name):
    import transformers

    assert read(name) == models.config_from_hf(transformers.AutoConfig.for_model(name).to_dict())


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"rope_theta": 500000}, {"rope_type": "default", "rope_theta": 500000.0}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4}},
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_type": "llama3", **LLAMA3, "rope_theta": 5e5},
        ),
    ],
)
def test_both_spellings_of_rope(older, newer):
    config = read(**older)
    assert config == read(rope_parameters=newer) == read(**older, rope_parameters=newer)
    assert config.rope.rope_type == newer["rope_type"]


def test_positions_of_a_stretched_model():
    assert read(max_position_embeddings=4096).positions == 4096
    assert read(max_position_embeddings=4096, rope_scaling={"type": "linear", "factor": 4.0}).positions == 16384
    assert read(max_position_embeddings=131072, rope_scaling={"rope_type": "llama3", **LLAMA3}).positions == 131072


def test_windows():
    """Llama has none whatever its file says, Mistral one everywhere, Qwen one from a layer on if it is switched on."""
    assert read(sliding_window=4096).sliding_window is None
    mistral = read("mistral", **SMALL, sliding_window=7)
    assert [mistral.window(i) for i in range(3)] == [7, 7, 7]
    assert read("mistral", sliding_window=None).sliding_window is None
    assert read("qwen2", **SMALL, sliding_window=7, max_window_layers=1).sliding_window is None
    switched = read("qwen2", **SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1)
    assert [switched.window(i) for i in range(3)] == [None, 7, 7]
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert read("qwen2", **SMALL, use_sliding_window=True, sliding_window=7, layer_types=kinds) == switched
    assert read("qwen3", **SMALL, use_sliding_window=True, max_window_layers=3) == read("qwen3", **SMALL)


def test_heads():
    assert read(**SMALL).head_dim == 16
    assert read("qwen3", **SMALL).head_dim == 128
    assert read("qwen2", **SMALL, head_dim=24).head_dim == 24
    assert read(hidden_size=64, num_attention_heads=4).num_key_value_heads == 4
    assert read(hidden_size=66, num_attention_heads=4, head_dim=16).head_dim == 16


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "eos_token_id": [1, 2], "pad_token_id": 0},
        {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"model_type": "mistral", "sliding_window": None, "head_dim": 32, "bos_token_id": None},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
        {"model_type": "qwen3", "tie_word_embeddings": True, "rope_scaling": {"type": "dynamic", "factor": 2}},
    ],
)
def test_written_and_read_back(tmp_path, raw):
    """By us and by transformers, which must find the same in it."""
    import transformers

    config = models.config_from_hf(raw | SMALL)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config, task="causal_lm")))
    assert models.config_from_hf(tmp_path) == config
    assert models.config_from_hf(transformers.AutoConfig.from_pretrained(tmp_path).to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 66}, "hidden_size=66 is not divisible by num_attention_heads=4; or give head_dim"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not divisible by num_key_value_heads=3"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"hidden_size": 12}, "head_dim=3 is odd"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two'"),
        ({"hidden_act": "swish2"}, "hidden_act='swish2'.*silu"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ({"mlp_bias": "yes"}, "mlp_bias='yes'"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias=True is not for mistral"),
        ({"model_type": "qwen2", "attention_bias": False}, "attention_bias=False is not for qwen2"),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias=True is not for qwen3"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window=0"),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
            "layer_types=.*full_attention, then sliding_attention, 3 layers",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'.*default, linear, dynamic, llama3"),
        ({"rope_scaling": {"type": "linear"}}, "rope.factor=None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope.low_freq_factor=None"),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor=4.0 is not below high_freq_factor=4.0",
        ),
        ({"rope_theta": -1}, "rope.rope_theta=-1"),
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "rope_parameters.rope_theta=10000.0 contradicts 500000.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": "linear"}, "must be mappings"),
    ],
)
def test_contradictions(change, message):
    with pytest.raises(ModelError, match=message):
        models.config_from_hf({"model_type": "llama", **SMALL, **change})


def test_all_problems_at_once(tmp_path):
    bad = {"model_type": "llama", "vocab_size": -1, "hidden_act": "x", "rope_scaling": {"type": "yarn"}}
    (tmp_path / "config.json").write_text(json.dumps(bad))
    with pytest.raises(ModelError) as error:
        models.config_from_hf(tmp_path)
    parts = ("vocab_size=-1", "hidden_act='x'", "yarn", str(tmp_path))
    assert all(part in str(error.value) for part in parts)


def test_equal_however_written():
    assert hash(read(rope_theta=10000, rms_norm_eps=1, initializer_range=1)) == hash(
        read(rope_theta=1e4, rms_norm_eps=1.0, initializer_range=1.0)
    )
