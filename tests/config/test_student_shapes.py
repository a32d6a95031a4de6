"""Students of both families: what each may say about its shape, and what becomes of it."""

from __future__ import annotations

import json

import pytest
from raw_runs import BERT, assert_one_problem, problems, run, stage

from jaxdistill import models
from jaxdistill.config import load_run, run_from_dict
from jaxdistill.config.families import DECODERS, ENCODERS, student_fields
from jaxdistill.config.model_schema import StudentConfig
from jaxdistill.config.reading import dump_yaml
from jaxdistill.config.shapes import student_shape
from jaxdistill.models.config import ARCHITECTURES
from jaxdistill.models.llama_config import LLAMA_ARCHITECTURES

LLAMA = {
    "architecture": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
}
TEXT = {"task": "causal_lm", "train": {"path": "text.txt"}}


def decoder(*, like=LLAMA, **keys):
    """A run of one decoder student."""
    return run(stage("student", teacher={"pretrained": "owner/teacher"}, student=like | keys), data=TEXT)


def student(raw) -> StudentConfig:
    return run_from_dict(raw).stages[0].student


def test_the_families_are_those_that_can_be_built():
    assert ENCODERS == ARCHITECTURES
    assert DECODERS == LLAMA_ARCHITECTURES


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": True, "mlp_bias": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "attention_bias": True, "hidden_act": "silu"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "max_position_embeddings": 64},
        {"architecture": "mistral", "sliding_window": 7},
        {"architecture": "qwen2", "sliding_window": 7, "max_window_layers": 1},
        {"architecture": "qwen3", "attention_bias": True, "initializer_range": 0.1},
    ],
)
def test_a_decoders_fields_reach_its_configuration(fields):
    made = models.config_from_hf(student_fields(student(decoder(**fields))))
    assert isinstance(made, models.LlamaConfig)
    assert made.model_type == fields.get("architecture", "llama")
    for name, value in (LLAMA | fields).items():
        if name not in ("architecture", "rope_theta", "rope_scaling", "rope_parameters"):
            assert getattr(made, name) == value
    rope = fields.get("rope_parameters", {}) | fields.get("rope_scaling", {})
    assert made.rope.rope_theta == rope.get("rope_theta", fields.get("rope_theta", 1e4))
    assert made.rope.factor == rope.get("factor", 1.0)


@pytest.mark.parametrize("architecture", DECODERS)
def test_the_sizes_expected_are_those_that_are_built(architecture):
    """What is checked before anything is loaded and what is built have the same defaults."""
    config = models.config_from_hf({"model_type": architecture})
    shape = student_shape(StudentConfig(architecture=architecture), "student")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        assert getattr(shape, name) == getattr(config, name)
    assert shape.head_dim == config.head_dim


ONLY_ENCODERS = "only encoders have it, and llama is not one; remove it"
PROBLEMS = {
    "token types": ({"type_vocab_size": 2}, f"type_vocab_size: {ONLY_ENCODERS}"),
    "layer norm": ({"layer_norm_eps": 1e-5}, f"layer_norm_eps: {ONLY_ENCODERS}, or give rms_norm_eps"),
    "dropout": ({"hidden_dropout_prob": 0.1}, f"hidden_dropout_prob: {ONLY_ENCODERS}"),
    "projections": ({"projections": 5}, "projections: only bert_hash has projections, this is llama"),
    "key heads": (
        {"num_key_value_heads": 3},
        "num_key_value_heads: 4 attention heads cannot share 3 key and value heads evenly; expected a divisor",
    ),
    "default key heads": (
        {"architecture": "mistral", "num_key_value_heads": None},
        "num_key_value_heads: 4 attention heads cannot share 8 key and value heads (the default) evenly",
    ),
    "width": ({"hidden_size": 18}, "hidden_size: 18 is not divisible by 4 attention heads; expected a multiple of"),
    "odd heads": ({"head_dim": 3}, "head_dim: heads of 3 channels; expected an even number"),
    "odd heads by default": ({"hidden_size": 12}, "hidden_size: heads of 3 channels; expected an even number"),
    "window": ({"sliding_window": 4}, "sliding_window: llama has no sliding window (mistral and qwen have); remove it"),
    "window from a layer on": (
        {"architecture": "mistral", "max_window_layers": 1},
        "max_window_layers: only qwen2 and qwen3 have it, this is mistral; remove it",
    ),
    "window that is not there": (
        {"architecture": "qwen2", "max_window_layers": 1},
        "max_window_layers: says where a sliding window begins, and there is none; give sliding_window too",
    ),
    "biases": (
        {"architecture": "qwen2", "attention_bias": False},
        "attention_bias: qwen2 always has biases of queries, keys and values; remove it",
    ),
    "feed-forward biases": ({"architecture": "qwen3", "mlp_bias": True}, "mlp_bias: only llama have it, this is qwen3"),
    "kind of RoPE": ({"rope_scaling": "linear"}, "rope_scaling: got 'linear'; expected a mapping"),
    "encoder for language modelling": (
        {"architecture": "bert"},
        "architecture: bert is an encoder, and data.task causal_lm needs a decoder (llama, mistral, qwen2, qwen3)",
    ),
    "sizes beside derive": ({"derive": {"parameters": 1e6}, **dict.fromkeys(LLAMA), "head_dim": 8}, "head_dim: derive"),
    "nothing to derive to": ({"derive": {"parameters": 0}}, "derive.parameters: got 0; expected a number greater than"),
}


@pytest.mark.parametrize(("fields", "line"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_a_decoder_cannot_be(fields, line):
    assert_one_problem(decoder(**fields), f"stages.0.student.{line}")


def test_a_head_size_of_its_own_needs_no_divisible_width():
    assert not problems(decoder(hidden_size=18, head_dim=4))


def test_what_an_encoder_cannot_be():
    raw = run(stage("a", teacher=None, student=BERT | {"rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4}))
    assert problems(raw) == [
        "stages.0.student.rms_norm_eps: only decoders have it, and bert is not one; remove it, or give layer_norm_eps",
        "stages.0.student.rope_theta: only decoders have it, and bert is not one; remove it",
        "stages.0.student.hidden_act: got 'silu', which only decoders have; expected gelu, gelu_new or relu",
    ]
    needs = "needs an encoder (bert, bert_hash, distilbert)"
    message = f"stages.0.student.architecture: llama is a decoder, and data.task classification {needs}"
    assert_one_problem(run(stage("a", teacher=None, student=LLAMA)), message)
    assert_one_problem(
        run(stage("a", teacher=None, student={"derive": {"parameters": 1e6}})),
        "stages.0.student.derive: only decoders are derived, and data.task is classification",
    )


def test_models_given_by_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a\n")
    for name, model_type in (("encoder", "bert"), ("decoder", "llama")):
        (tmp_path / name).mkdir()
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 30}
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": model_type, **sizes}))
    data = TEXT | {"train": {"asset": "sentiment", "split": "train"}}
    stages = [
        stage("a", teacher=None, student={"pretrained": "./encoder"}),
        stage("b", teacher="./encoder", student=LLAMA),
        stage("c", teacher="./decoder", student={"pretrained": "./decoder", "hidden_dropout_prob": 0.1}),
    ]
    (tmp_path / "run.yaml").write_text(dump_yaml(run(*stages, data=data)))
    with pytest.raises(ValueError, match="stages") as caught:
        load_run("run.yaml")
    needs = "is an encoder, and data.task causal_lm needs a decoder (llama, mistral, qwen2, qwen3)"
    assert str(caught.value).splitlines() == [
        f"stages.0.student.pretrained: ./encoder {needs}",
        f"stages.1.teacher: ./encoder {needs}",
        "stages.2.student.hidden_dropout_prob: decoders are trained without dropout; remove it",
    ]
