"""Decoders narrowed to their most important part: what is measured, what is kept, and that it is a real slice."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from jaxdistill import models
from jaxdistill.config.model_schema import WarmStartConfig
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.distill.warm_start import check_warm_start, warm_start
from jaxdistill.distill.width_selection import FEW, most_important, select_width
from jaxdistill.errors import ModelError
from jaxdistill.models.axes import param_shardings
from jaxdistill.parallel import make_mesh

WIDE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-10,
}
NARROW = {"hidden_size": 10, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "biases, tied": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 3},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": {"model_type": "qwen3"},
}


def decoder(kind="llama", seed=0, **fields) -> tuple[models.Model, dict[str, Any]]:
    """A model and parameters random in every leaf, biases and norms included."""
    model = models.build({**WIDE, **KINDS[kind], **fields}, task="causal_lm")
    rng = np.random.default_rng(seed)
    shapes = models.parameter_shapes(model)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)


def batch(seed=0) -> dict[str, np.ndarray]:
    """Two rows of two documents, padding at the end of one."""
    rng = np.random.default_rng(seed)
    segments = np.array([[1] * 5 + [2] * 4, [1] * 4 + [2] * 3 + [0] * 2], np.int32)
    positions = np.array([[*range(5), *range(4)], [*range(4), *range(3), 0, 0]], np.int32)
    ids = rng.integers(0, 40, segments.shape).astype(np.int32)
    return {"input_ids": ids, "segment_ids": segments, "positions": positions}


@cache
def _apply(model: models.Model, outputs: tuple[str, ...]) -> Any:
    return jax.jit(lambda params, batch: model.apply(params, batch, outputs))


def signals(model, params, *outputs):
    return jax.tree.map(np.asarray, _apply(model, outputs)(params, batch()))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-6} | tolerances), a, b)


# --- what is measured ------------------------------------------------------------------------------------------------


def by_hand(model, params) -> dict[str, np.ndarray]:
    """The same sums from the model's own signals, in float64."""
    config, layers = model.config, jax.tree.map(np.float64, params["decoder"]["layers"])
    out = signals(model, params, "hidden_states", "attentions", "qkv")
    hidden, seen = np.float64(out["hidden_states"]), (batch()["segment_ids"] > 0)[..., None]

    def normed(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def total(values):
        return np.where(seen, values, 0).sum((0, 1))

    def at_norm(x, scale):
        return total(np.abs(normed(x, scale))), total(x * x / (x * x).mean(-1, keepdims=True))

    def dense(x, layer, name):
        return x @ layers[name]["kernel"][layer] + layers[name].get("bias", np.zeros((99, 1)))[layer]

    sums: dict[str, list[np.ndarray]] = {"heads": [], "units": [], "channels": [], "energy": []}
    for i in range(config.num_hidden_layers):
        x, attention = hidden[i], layers["attention"]["output"]
        context = np.einsum("bnqk,bknh->bqnh", np.float64(out["attentions"][i]), np.float64(out["qkv"][i, 2]))
        each = np.einsum("bqnh,nhd->bqnd", context, attention["kernel"][i])
        attended = x + each.sum(2) + attention.get("bias", np.zeros((99, 1)))[i]
        fed = normed(attended, layers["feed_forward_norm"]["scale"][i])
        gate = dense(fed, i, "gate")
        inner = gate / (1 + np.exp(-gate)) * dense(fed, i, "up")
        sums["heads"].append(total(np.linalg.norm(each, axis=-1)))
        sums["units"].append(total(np.abs(inner)) * np.linalg.norm(layers["down"]["kernel"][i], axis=1))
        norms = (
            at_norm(x, layers["attention_norm"]["scale"][i]),
            at_norm(attended, layers["feed_forward_norm"]["scale"][i]),
        )
        sums["channels"].append(np.stack([values for values, _ in norms]))
        sums["energy"].append(np.stack([energy for _, energy in norms]))
        last = attended + dense(inner, i, "down")
    final = at_norm(last, np.float64(params["norm"]["scale"]))
    return {name: np.stack(values) for name, values in sums.items()} | {
        "final_channels": final[0],
        "final_energy": final[1],
        "tokens": seen.sum(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_importance_is_what_the_models_own_signals_say(kind):
    model, params = decoder(kind)
    measured = models.decoder_importance(model, params, batch())
    for name, expected in by_hand(model, params).items():
        np.testing.assert_allclose(getattr(measured, name), expected, rtol=2e-4, err_msg=name)


def test_padding_counts_for_nothing_and_batches_add_up():
    model, params = decoder()
    other = batch()
    other["input_ids"] = np.where(other["segment_ids"] > 0, other["input_ids"], 7).astype(np.int32)
    once = models.decoder_importance(model, params, batch())
    close(models.decoder_importance(model, params, other), once)
    rows = [{name: array[i : i + 1] for name, array in batch().items()} for i in range(2)]
    first, second = (models.decoder_importance(model, params, row) for row in rows)
    close(first + second, once, rtol=1e-4)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_most_important_are_kept_in_their_order():
    """Four layers of 2 groups of 3 heads; the second and fourth are kept, with one group of 2 heads."""
    teacher = models.config_from_hf({"model_type": "llama", **WIDE})
    student = dataclasses.replace(
        teacher, num_attention_heads=2, num_key_value_heads=1, hidden_size=3, intermediate_size=2
    )
    rng = np.random.default_rng(0)
    heads = np.array([[0] * 6, [1, 9, 2, 8, 4, 0], [0] * 6, [5, 1, 6, 9, 0, 1]], np.float32)
    channels = np.ones((4, 2, 6), np.float32)
    channels[1, 0] = [5, 0, 45, 0, 50, 0]  # one norm of large values ...
    channels[3, 1] = [0.03, 0.07, 0, 0, 0, 0.0]  # ... has no more to say than one of small
    importance = models.Importance(
        tokens=np.float32(4),
        heads=heads,
        units=np.array([[9, 9, 9, 9], [1, 5, 3, 4], [9, 9, 9, 9], [2, 2, 1, 2]], np.float32),
        channels=channels,
        energy=rng.uniform(size=(4, 2, 6)).astype(np.float32),
        final_channels=np.ones(6, np.float32),
        final_energy=np.arange(6, dtype=np.float32),
    )
    part = most_important(importance, student, teacher, (1, 3))
    same(part.layers, np.array([1, 3]))
    same(part.key_heads, np.array([[1], [0]]))  # 8 + 4 against 9 + 2; 5 + 6 against 9 + 1
    same(part.query_heads, np.array([[3, 4], [0, 2]]))
    same(part.units, np.array([[1, 3], [0, 1]]))  # of equals the first
    same(part.channels, np.array([1, 2, 4]))  # scores .35, .7, .45, 0, .5 and 0 beside what all have
    expected = np.sqrt(importance.energy[[1, 3]][:, :, [1, 2, 4]].mean(-1) / 4)
    close(part.norm_scales, (expected[:, 0], expected[:, 1], np.sqrt(7 / 3 / 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_the_same_widths_is_the_model(kind):
    model, params = decoder(kind)
    same(select_width(model, params, model.config, [batch()], layers=range(3)), params)


def hidden_in_a_wider_one(kind: str) -> tuple[models.Model, dict, models.Model]:
    """(teacher, its parameters, a student's model): all of the teacher but a part as wide as the student does nothing.

    Outside the kept channels nothing is written to the hidden states, and heads and units outside the kept ones, which
    differ from layer to layer, write nothing. What is left out is random otherwise.
    """
    teacher, params = decoder(kind)
    student, _ = decoder(kind, **NARROW)
    rng = np.random.default_rng(1)
    dead = rng.permutation(16)[10:]
    params["embeddings"]["word"][:, dead] = 0
    layers = params["decoder"]["layers"]
    for holder in (layers["attention"]["output"], layers["down"]):
        for leaf in holder.values():
            leaf[..., dead] = 0
    for layer in range(3):
        group = rng.integers(2)
        kept = group * 3 + rng.permutation(3)[:2]
        unused = np.setdiff1d(np.arange(6), kept)
        layers["attention"]["output"]["kernel"][layer, unused] = 0
        layers["down"]["kernel"][layer, rng.permutation(20)[12:]] = 0
    return teacher, params, student


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_out_what_does_nothing_changes_nothing(kind):
    teacher, params, student = hidden_in_a_wider_one(kind)
    part = select_width(teacher, params, student.config, [batch(1), batch(2)], layers=range(3))
    shapes = models.parameter_shapes(student)
    jax.tree.map(
        lambda leaf, shape: np.testing.assert_equal((leaf.shape, leaf.dtype), (shape.shape, shape.dtype)), part, shapes
    )
    seen = (batch()["segment_ids"] > 0)[..., None]
    mine, theirs = signals(student, part, "logits")["logits"], signals(teacher, params, "logits")["logits"]
    np.testing.assert_allclose(np.where(seen, mine, 0), np.where(seen, theirs, 0), rtol=1e-4, atol=1e-4)


def test_layers_are_chosen_as_well():
    teacher, params, student = hidden_in_a_wider_one("llama")
    shallow = models.build(dataclasses.replace(student.config, num_hidden_layers=2), task="causal_lm")
    whole = models.build(dataclasses.replace(teacher.config, num_hidden_layers=2), task="causal_lm")
    part = select_width(teacher, params, shallow.config, [batch(1)], layers=(0, 2))
    cut = {**params, "decoder": {"layers": models.select_layers(params, (0, 2))}}
    seen = (batch()["segment_ids"] > 0)[..., None]
    mine, theirs = signals(shallow, part, "logits")["logits"], signals(whole, cut, "logits")["logits"]
    np.testing.assert_allclose(np.where(seen, mine, 0), np.where(seen, theirs, 0), rtol=1e-4, atol=1e-4)


def test_a_teacher_spread_over_a_mesh_in_bfloat16():
    teacher, params, student = hidden_in_a_wider_one("llama")
    whole = select_width(teacher, params, student.config, [batch(1)], layers=range(3))
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    spread = jax.device_put(params, param_shardings(teacher, mesh))
    close(select_width(teacher, spread, student.config, [batch(1)], layers=range(3)), whole, rtol=1e-4)
    half = models.build(teacher.config, task="causal_lm", dtype="bfloat16")
    kept = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    part = select_width(half, kept, student.config, [batch(1)], layers=range(3))
    close(part, whole, rtol=0.05, atol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(part)} == {"float32"}


def test_a_few_batches_of_an_endless_text_are_read():
    model, params = decoder()
    read = []

    def text():
        while True:
            read.append(1)
            yield batch(len(read))

    narrow = dataclasses.replace(model.config, **NARROW)
    select_width(model, params, narrow, text(), layers=range(3))
    assert len(read) == FEW
    with pytest.raises(ModelError, match=r"warm_start\.width: no text to measure importance on"):
        select_width(model, params, narrow, [], layers=range(3))


# --- through the configuration ---------------------------------------------------------------------------------------


def start(student, teacher, config, seed=1):
    """The student's random parameters before and after, and the lines."""
    (own, params), (theirs, source) = student, teacher
    started, lines = warm_start(own, params, theirs, source, config, calibration=lambda: [batch(seed)])
    return params, started, lines


def test_layers_of_equal_width():
    teacher, student = decoder(), decoder(seed=1, num_hidden_layers=2)
    params, started, lines = start(student, teacher, WarmStartConfig(layers=(0, 2)))
    same(started["decoder"]["layers"], jax.tree.map(lambda x: x[np.array([0, 2])], teacher[1]["decoder"]["layers"]))
    same(started["embeddings"], params["embeddings"])
    same((started["norm"], started["head"]), (teacher[1]["norm"], teacher[1]["head"]))
    assert lines == ["layers 0 … 1 from teacher layers 0, 2 (as listed)", "final norm and head copied"]
    params, started, lines = start(student, teacher, WarmStartConfig(embeddings="copy"))
    same(started, {**params, "embeddings": teacher[1]["embeddings"]})
    assert lines == ["embeddings copied"]


def test_everything_of_equal_shape_makes_an_equal_model():
    teacher, student = decoder("qwen3"), decoder("qwen3", seed=1)
    same(start(student, teacher, WarmStartConfig("uniform", "copy"))[1], teacher[1])
    same(start(student, teacher, WarmStartConfig("uniform", width="importance"))[1], teacher[1])


@pytest.mark.parametrize("width", [None, "importance"])
def test_tied_and_untied(width):
    """An untied student has its tied teacher's logits; a tied one loses its teacher's head, and it is said."""
    untied, tied = decoder(seed=1), decoder(seed=2, tie_word_embeddings=True)
    config = WarmStartConfig("uniform", "copy", width)
    _, started, lines = start(untied, tied, config)
    logits = [signals(model, params, "logits")["logits"] for model, params in ((untied[0], started), tied)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    assert "final norm and head copied (from the embeddings)" in lines
    _, started, lines = start(tied, untied, config)
    same(started, {name: untied[1][name] for name in ("embeddings", "decoder", "norm")})
    assert "final norm copied; the teacher's own head is not: the student's is its embeddings" in lines


def test_a_narrower_student_says_what_it_kept():
    teacher, params, student = hidden_in_a_wider_one("llama")
    fresh = student.init(jax.random.key(0))
    config = WarmStartConfig("uniform", width="importance")
    started, lines = warm_start(student, fresh, teacher, params, config, calibration=lambda: [batch(1)])
    same(started, select_width(teacher, params, student.config, [batch(1)], layers=range(3)))
    assert lines == [
        "layers 0 … 2 from teacher layers 0, 1, 2 (uniform)",
        "of them and of the embeddings the 10 most important of 16 channels, 2 of 6 heads, 1 of 2 key heads, 12 of 20 "
        "units",
        "final norm and head copied",
    ]
    with pytest.raises(ModelError, match=r"warm_start\.width: importance is measured on text, and none was given"):
        warm_start(student, fresh, teacher, params, config)


COPY, SLICE = WarmStartConfig("uniform", "copy"), WarmStartConfig("uniform", width="importance")


@pytest.mark.parametrize(
    ("fields", "config", "message"),
    [
        (NARROW, COPY, r"hidden_size is 10, there 16; intermediate_size is 12.* add `width: importance`"),
        ({"model_type": "qwen3"}, COPY, r"not alike: qk_norm is true, there false; leave `layers` out, or make them e"),
        ({"model_type": "qwen2"}, SLICE, r"no part of the teacher: attention_bias is true, there false"),
        (
            {"hidden_size": 18, "intermediate_size": 24},
            SLICE,
            r"hidden_size 18 is more than 16; intermediate_size 24 i",
        ),
        (
            {"head_dim": 2, "num_key_value_heads": 1},
            SLICE,
            r"6 query heads share a key head, there 3; head_dim is 2, t",
        ),
        ({"vocab_size": 41}, SLICE, r"vocab_size is 41, there 40"),
        ({"vocab_size": 41}, WarmStartConfig(embeddings="copy"), r"41 tokens and the teacher's 40"),
        (
            NARROW,
            WarmStartConfig(embeddings="copy"),
            r"10 for the student and 16 .* use `layers` and `width: importance`",
        ),
        ({}, WarmStartConfig(embeddings="svd"), r"svd is for encoders"),
        ({}, WarmStartConfig(width="importance"), r"width: says how copied layers are narrowed; give `layers` too"),
        ({"num_hidden_layers": 4}, SLICE, r"has 4 layers and the teacher only 3"),
    ],
)
def test_what_cannot_be_taken_is_said(fields, config, message):
    student = models.config_from_hf({**WIDE, "model_type": "llama", **fields})
    with pytest.raises(ModelError, match=message):
        check_warm_start(student, models.config_from_hf({**WIDE, "model_type": "llama"}), config)


def test_families_do_not_mix():
    encoder = models.EncoderConfig()
    with pytest.raises(ModelError, match="the student is a bert and the teacher a llama; layers and embeddings are"):
        check_warm_start(encoder, models.LlamaConfig(), COPY)
    with pytest.raises(ModelError, match=r"warm_start\.width: only decoders are narrowed by importance"):
        check_warm_start(encoder, encoder, SLICE)
