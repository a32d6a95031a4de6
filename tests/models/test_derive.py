"""Shapes that follow from a teacher and a number of parameters, and what a student has from its teacher."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import SHAPE, VARIANTS

from jaxdistill import models
from jaxdistill.config.model_schema import DeriveConfig, StudentConfig
from jaxdistill.errors import ConfigError, ModelError
from jaxdistill.models.derive import TOLERANCE


def decoder(model_type="llama", **fields) -> models.LlamaConfig:
    return models.config_from_hf({"model_type": model_type, **fields})


LLAMA_2_7B = decoder(max_position_embeddings=4096, rms_norm_eps=1e-5)
LLAMA_3_8B = decoder(vocab_size=128256, num_key_value_heads=8, intermediate_size=14336, rope_theta=5e5)
SMOLLM2_135M = decoder(
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    rope_theta=1e5,
)
QWEN3 = decoder("qwen3", num_key_value_heads=8, intermediate_size=12288, num_hidden_layers=36)
TEACHERS = {"Llama 2 7B": LLAMA_2_7B, "Llama 3 8B": LLAMA_3_8B, "SmolLM2 135M": SMOLLM2_135M, "Qwen3 8B": QWEN3}


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("more", [{}, {"num_hidden_layers": 3, "intermediate_size": 24, "tie_word_embeddings": True}])
def test_the_count_is_that_of_the_arrays(variant, more):
    config = decoder(**SHAPE | VARIANTS[variant] | more)
    drawn = models.parameter_count(models.parameter_shapes(models.build(config, task="causal_lm")))
    assert models.decoder_parameters(config) == drawn


def test_published_counts():
    """As their model cards say: 6.74B, 8.03B and 134.5M."""
    assert models.decoder_parameters(LLAMA_2_7B) == 6_738_415_616
    assert models.decoder_parameters(LLAMA_3_8B) == 8_030_261_248
    assert models.decoder_parameters(SMOLLM2_135M) == 134_515_008


# --- deriving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.45, 0.3, 0.2, 0.1])
@pytest.mark.parametrize("name", TEACHERS)
def test_reasonable_targets_are_met(name, share):
    teacher = TEACHERS[name]
    target = share * models.decoder_parameters(teacher)
    made = models.derive_config(teacher, parameters=target)
    assert abs(models.decoder_parameters(made) / target - 1) <= TOLERANCE
    assert made.num_attention_heads % made.num_key_value_heads == 0
    groups = [config.num_attention_heads // config.num_key_value_heads for config in (made, teacher)]
    assert groups[0] == groups[1]
    assert made.hidden_size % 64 == made.intermediate_size % 64 == 0
    ratios = [config.intermediate_size / config.hidden_size for config in (made, teacher)]
    assert abs(ratios[0] / ratios[1] - 1) < 0.15
    for size in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "intermediate_size"):
        assert getattr(made, size) <= getattr(teacher, size)
    sizes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"}
    kept = {f.name for f in dataclasses.fields(teacher)} - sizes
    assert all(getattr(made, field) == getattr(teacher, field) for field in kept)


def test_width_goes_before_depth():
    """A quarter of 7B in about as many layers; only where layers are all that is left do they go."""
    assert models.derive_config(LLAMA_2_7B, parameters=1.5e9).num_hidden_layers == 31
    assert models.derive_config(SMOLLM2_135M, parameters=50e6).num_hidden_layers == 30
    assert models.derive_config(SMOLLM2_135M, parameters=8e6).num_hidden_layers < 15


def test_the_teachers_own_size_is_the_teacher():
    assert models.derive_config(QWEN3, parameters=models.decoder_parameters(QWEN3)) == QWEN3


def test_heads_that_a_tensor_axis_divides():
    made = models.derive_config(LLAMA_2_7B, parameters=2e9, key_heads_multiple_of=4)
    assert made.num_key_value_heads % 4 == 0
    with pytest.raises(ConfigError, match="3 key heads are no multiple of 2; expected a divisor"):
        models.derive_config(SMOLLM2_135M, parameters=80e6, key_heads_multiple_of=2)


@settings(deadline=None, max_examples=60)
@given(
    key_heads=st.integers(1, 6),
    shared=st.integers(1, 4),
    head_dim=st.sampled_from([2, 4, 6, 64]),
    width=st.integers(1, 12),
    layers=st.integers(1, 5),
    inner=st.integers(1, 90),
    share=st.floats(0.01, 1),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_whatever_the_teacher_the_student_can_be_built(
    key_heads, shared, head_dim, width, layers, inner, share, variant
):
    teacher = decoder(
        **SHAPE
        | VARIANTS[variant]
        | {"num_key_value_heads": key_heads, "num_attention_heads": key_heads * shared, "head_dim": head_dim}
        | {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    )
    made = refused = None
    try:
        made = models.derive_config(teacher, parameters=share * models.decoder_parameters(teacher))
    except ConfigError as error:
        refused = str(error)
    if made is None:
        assert refused is not None
        assert "is too few for a vocabulary of 60 tokens" in refused
        return
    assert models.config_from_hf(models.config.config_to_hf(made, task="causal_lm")) == made


def test_impossible_sizes():
    with pytest.raises(
        ConfigError, match=r"2M is too few for a vocabulary of 49152 tokens: .* 1 layer 64 wide, has 3\.\d+M, 3\.15M of"
    ):
        models.derive_config(SMOLLM2_135M, parameters=2e6)
    with pytest.raises(ConfigError, match=r"derive\.parameters: 1\.5B is more than the teacher's 135M"):
        models.derive_config(SMOLLM2_135M, parameters=1.5e9)


# --- from the student's configuration --------------------------------------------------------------------------------


def derived(parameters, rungs=1, **keys) -> StudentConfig:
    return StudentConfig(derive=DeriveConfig(parameters, rungs), **keys)


def test_a_ladder_is_geometric():
    sizes, teacher = [models.decoder_parameters(LLAMA_3_8B)], LLAMA_3_8B
    for rungs in (3, 2, 1):
        teacher = models.resolve_derived(derived(1e9, rungs), teacher)
        sizes.append(models.decoder_parameters(teacher))
    wanted = [sizes[0] * (1e9 / sizes[0]) ** (i / 3) for i in range(4)]
    assert all(math.isclose(size, goal, rel_tol=TOLERANCE) for size, goal in zip(sizes, wanted, strict=True))


def test_what_cannot_be_derived():
    with pytest.raises(ConfigError, match=r"derive: no teacher that reads the same tokens; expected a decoder \(llama"):
        models.resolve_derived(derived(1e6), None)
    with pytest.raises(ConfigError, match="derive: a bert as teacher; expected a decoder"):
        models.resolve_derived(derived(1e6), models.EncoderConfig())
    with pytest.raises(ConfigError, match="architecture: llama, but derive keeps the teacher's, which is qwen3"):
        models.resolve_derived(derived(1e9, architecture="llama"), QWEN3)
    with pytest.raises(ConfigError, match=r"9B is more than the teacher's 8\.03B"):
        models.student_config(derived(9e9, rungs=2), teacher=LLAMA_3_8B)
    assert models.student_config(derived(1e9, architecture="qwen3"), teacher=QWEN3).model_type == "qwen3"


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def test_a_decoder_has_from_its_teacher_what_it_does_not_say():
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
    teacher = decoder(
        **SHAPE | {"rms_norm_eps": 1e-4, "mlp_bias": True, "rope_parameters": rope, "eos_token_id": [2, 5]},
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    made = models.student_config(StudentConfig(architecture="llama", **SIZES), teacher=teacher)
    assert made == dataclasses.replace(teacher, **SIZES, num_key_value_heads=4, head_dim=16, initializer_range=0.02)
    own = {"tie_word_embeddings": False, "rms_norm_eps": 1e-3, "mlp_bias": False, "rope_theta": 7.0, "vocab_size": 9}
    made = models.student_config(StudentConfig(architecture="llama", **SIZES, **own), vocab_size=50, teacher=teacher)
    assert made.rope == models.RopeConfig(rope_theta=7.0)  # not stretched as the teacher's
    assert (made.vocab_size, made.tie_word_embeddings, made.rms_norm_eps, made.mlp_bias) == (9, False, 1e-3, False)
    other = models.student_config(StudentConfig(architecture="qwen2", **SIZES), vocab_size=50, teacher=teacher)
    assert (other.vocab_size, other.rope, other.eos_token_id) == (50, teacher.rope, (2, 5))
    assert (other.rms_norm_eps, other.mlp_bias, other.attention_bias) == (1e-6, False, True)
    alone = models.student_config(StudentConfig(architecture="llama", **SIZES), vocab_size=50)
    assert alone == decoder(**SIZES, vocab_size=50)


def test_a_window_begins_at_the_same_share_of_the_layers():
    teacher = decoder("qwen2", **SIZES | {"num_hidden_layers": 8}, use_sliding_window=True, max_window_layers=4)
    made = models.student_config(StudentConfig(architecture="qwen2", **SIZES), teacher=teacher)
    assert [made.window(layer) for layer in range(2)] == [None, 4096]
    own = StudentConfig(architecture="qwen2", **SIZES, sliding_window=5)
    made = models.student_config(own, teacher=teacher)
    assert [made.window(layer) for layer in range(2)] == [5, 5]
    half = models.derive_config(teacher, parameters=models.decoder_parameters(teacher) / 4)
    assert half.max_window_layers == round(half.num_hidden_layers / 2)


def test_an_encoder_has_its_own_fields_alone():
    fields = {"hidden_size": 8, "num_attention_heads": 2, "projections": 3}
    made = models.student_config(StudentConfig(architecture="bert_hash", **fields), vocab_size=9, teacher=LLAMA_2_7B)
    assert made == models.config_from_hf({"model_type": "bert_hash", "vocab_size": 9, **fields})
    with pytest.raises(ModelError, match="hidden_size=9 is not divisible"):
        models.student_config(StudentConfig(architecture="bert", hidden_size=9, num_attention_heads=2))
