"""Packed documents equal separate ones, padding never matters, and a sliding window slides."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import LENGTH, SHAPE, VARIANTS, VOCAB, batch, pack
from tiny_encoders import jit

from jaxdistill import models
from jaxdistill.models.causal_attention import causal_attention, causal_mask, explicit_attention
from jaxdistill.models.rope import document_lengths

B, S, N, K, H = 2, 9, 4, 2, 8


@cache
def make(variant, dtype="float32"):
    model = models.build(SHAPE | VARIANTS[variant], task="causal_lm", dtype=dtype)
    return model, jit(model.init)(jax.random.key(0)), jit(model.apply)


def documents(*lengths):
    rng = np.random.default_rng(3)
    return [rng.integers(4, VOCAB, length).astype(np.int32) for length in lengths]


def value_and_gradients(model):
    """Of a function that weighs every real token by its document and its position in it."""

    def loss(params, of, weights):
        logits = model.apply(params, of)["logits"]
        return jnp.sum(jnp.sin(logits).sum(-1) * weights), logits

    return jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize("variant", ["mistral", "qwen3"])
def test_packed_documents_equal_separate_ones(variant):
    """Logits of every token and gradients of every parameter: one row of three documents, or three padded rows."""
    model, params, _ = make(variant)
    run = value_and_gradients(model)
    texts = documents(5, 1, 4)
    packed = pack(texts)
    filler = {name: np.zeros_like(value) for name, value in packed.items()}
    three = {name: np.concatenate([value, filler[name], filler[name]]) for name, value in packed.items()}
    rows = [pack([text]) for text in texts]
    separate = {name: np.concatenate([row[name] for row in rows]) for name in packed}

    def weights(of):
        return np.where(of["segment_ids"] > 0, 1.0 + of["positions"], 0.0).astype(np.float32)

    gradients, logits = run(params, three, weights(three))
    expected_gradients, expected = run(params, separate, weights(separate))
    assert np.isfinite(logits).all()
    together = np.concatenate([expected[i, : len(text)] for i, text in enumerate(texts)])
    np.testing.assert_allclose(logits[0, : len(together)], together, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), gradients, expected_gradients)


def test_positions_need_no_reset():
    """Attention sees differences of positions alone: left out, packed documents still equal separate ones."""
    _, params, apply = make("mistral")
    packed = pack(documents(5, 4))
    without = {name: value for name, value in packed.items() if name != "positions"}
    real = packed["segment_ids"] > 0
    np.testing.assert_allclose(apply(params, packed)["logits"][real], apply(params, without)["logits"][real], atol=5e-6)


def test_documents_are_stretched_by_their_own_lengths():
    """Dynamic RoPE: only a document beyond the original positions is stretched, whatever it is packed with."""
    _, params, apply = make("dynamic RoPE")
    long, short = documents(10, 2)
    packed = apply(params, pack([long, short]))["logits"][0]
    np.testing.assert_allclose(packed[:10], apply(params, pack([long]))["logits"][0, :10], atol=5e-6)
    np.testing.assert_allclose(packed[10:], apply(params, pack([short]))["logits"][0, :2], atol=5e-6)


def test_document_lengths():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0]], np.int32)
    for positions in ([[0, 1, 2, 0, 1, 0, 0]], [[0, 1, 2, 3, 4, 5, 6]]):
        lengths = document_lengths(segments, np.array(positions, np.int32))
        np.testing.assert_array_equal(lengths[0, :5], [3, 3, 3, 2, 2])


def test_mask_and_one_segment_are_the_same_and_padding_changes_nothing():
    _, params, apply = make("mistral")
    of = batch()
    masked = apply(params, {name: of[name] for name in ("input_ids", "attention_mask")})["logits"]
    one = apply(params, {"input_ids": of["input_ids"], "segment_ids": of["attention_mask"]})["logits"]
    np.testing.assert_array_equal(masked, one)
    real = of["attention_mask"] > 0
    other = of["input_ids"].copy()
    other[~real] = 9
    again = apply(params, {"input_ids": other, "attention_mask": of["attention_mask"]})["logits"]
    np.testing.assert_array_equal(masked[real], again[real])


def test_a_token_sees_nothing_after_it_and_nothing_before_its_window():
    """The influence of one token on the logits of all others, through two layers with a window of 4."""
    model, params, _ = make("mistral")
    ids = documents(LENGTH)[0][None]
    changed = np.stack([np.where(np.arange(LENGTH) == i, (ids[0] + 1) % VOCAB, ids[0]) for i in range(LENGTH)])
    logits = jit(lambda p, i: model.apply(p, {"input_ids": i})["logits"])(params, np.concatenate([ids, changed]))
    moved = np.abs(logits[1:] - logits[:1]).max(-1) > 0  # [changed token, position]
    distance = np.arange(LENGTH)[None, :] - np.arange(LENGTH)[:, None]
    np.testing.assert_array_equal(moved, (distance >= 0) & (distance <= 2 * (4 - 1)))


@pytest.mark.parametrize("window", [None, 3])
def test_mask_is_the_definition(window):
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3, 3, 3]], np.int32)
    mask = np.asarray(causal_mask(S, segments, window=window))[:, 0]
    for b, q, k in np.ndindex(B, S, S):
        expected = k <= q and segments[b, q] == segments[b, k] and (window is None or q - k < window)
        assert mask[b, q, k] == expected, (b, q, k)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_with_and_without_its_probabilities(dtype):
    """The implementation of the device against the plain one that gives scores and probabilities back."""
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(B, S, n, H)), dtype) for n in (N, K, K))
    segments = np.array([[1] * 6 + [2] * 3, [1] * 7 + [0] * 2], np.int32)
    mask = causal_mask(S, segments, window=4)
    plain, attentions, scores = jit(explicit_attention)(query, key, value, mask)
    fused = jit(lambda q, k, v: causal_attention(q, k, v, segments, window=4))(query, key, value)
    assert (fused.dtype, attentions.dtype, scores.dtype) == (query.dtype, jnp.float32, jnp.float32)
    np.testing.assert_allclose(attentions.sum(-1), 1.0, atol=1e-6)
    tolerance = 1e-6 if dtype == "float32" else 0.02
    np.testing.assert_allclose(fused.astype(np.float32), plain.astype(np.float32), atol=tolerance)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
@pytest.mark.parametrize("window", [None, 70])
def test_attention_over_several_blocks_of_queries(implementation, window):
    """Value and gradients against the plain one, with documents that end inside blocks, and padding."""
    length = 300
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(B, length, n, H)), jnp.float32) for n in (N, K, K))
    towards = jnp.asarray(rng.normal(size=query.shape), jnp.float32)
    segments = jnp.asarray([[1] * 130 + [2] * 100 + [3] * 70, [1] * 299 + [0]], jnp.int32)

    def plain(q, k, v):
        return explicit_attention(q, k, v, causal_mask(length, segments, window=window))[0]

    def ours(q, k, v):
        return causal_attention(q, k, v, segments, window=window, implementation=implementation)

    found, expected = (
        jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(f(*a) * towards), argnums=(0, 1, 2)))(query, key, value)
        for f in (ours, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
