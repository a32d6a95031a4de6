from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import loss_oracle as oracle
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_oracle import ATOL, RTOL
from scipy.special import softmax

from jaxdistill import losses

B, V = 6, 50


@functools.cache
def compiled(label_smoothing=0.0):
    @jax.jit
    def value_and_gradient(logits, labels, where):
        def total(logits):
            values = losses.cross_entropy(logits, labels, label_smoothing=label_smoothing, where=where)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(logits)
        return values, gradient

    return value_and_gradient


def ours(logits, labels, label_smoothing=0.0, where=None):
    where = jnp.ones(labels.shape, bool) if where is None else where
    arrays = compiled(label_smoothing)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32), where)
    return [np.asarray(array, np.float64) for array in arrays]


def gradient_truth(logits, labels, label_smoothing=0.0):
    probabilities = softmax(np.asarray(logits, np.float64), axis=-1)
    onehot = np.eye(logits.shape[-1])[labels]
    is_label = onehot == 1
    others = np.where(is_label, 0, probabilities).sum(-1, keepdims=True)  # 1 − q without the cancellation
    return np.where(is_label, -others, probabilities) + label_smoothing * (onehot - 1 / logits.shape[-1])


def example(scale, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(B, V)) * scale).astype(np.float32), rng.integers(0, V, B).astype(np.int32)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_values_and_gradients_match_float64(scale, label_smoothing):
    logits, labels = example(scale)
    labels[:2] = logits[:2].argmax(-1)
    values, gradient = ours(logits, labels, label_smoothing)
    np.testing.assert_allclose(values, oracle.cross_entropy(logits, labels, label_smoothing), RTOL, ATOL)
    np.testing.assert_allclose(gradient, gradient_truth(logits, labels, label_smoothing), rtol=RTOL, atol=1e-8)


def test_a_confident_model_still_learns():
    """The label's probability is within 1e-8 of 1, where 1 − q rounds to 0 in float32."""
    logits, labels = np.zeros((B, V), np.float32), np.arange(B)
    logits[np.arange(B), labels] = np.linspace(17, 24, B)
    values, gradient = ours(logits, labels)
    assert (values < 1e-5).all()
    others = (V - 1) * np.exp(-np.linspace(17, 24, B).astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(values, np.log1p(others), rtol=RTOL)
    np.testing.assert_allclose(gradient, gradient_truth(logits, labels), rtol=RTOL)


def test_agrees_with_optax_where_that_is_accurate():
    logits, labels = example(2.0)
    np.testing.assert_allclose(
        ours(logits, labels)[0], optax.softmax_cross_entropy_with_integer_labels(logits, labels), rtol=1e-5
    )


def test_ignored_and_masked_positions_contribute_nothing():
    logits, labels = example(2.0)
    values, gradient = ours(logits, labels)
    spoiled, spoiled_labels = logits.copy(), labels.copy()
    spoiled_labels[[0, 3]] = -100
    spoiled[3], spoiled[4, 1] = np.nan, np.inf
    where = jnp.asarray([1, 1, 1, 1, 0, 1], bool)
    kept = np.array([0, 1, 1, 0, 0, 1], bool)
    masked, masked_gradient = ours(spoiled, spoiled_labels, where=where)
    np.testing.assert_allclose(masked, np.where(kept, values, 0), rtol=1e-6)
    np.testing.assert_allclose(masked_gradient, np.where(kept[:, None], gradient, 0), rtol=1e-6)
    for array in ours(spoiled, np.full(B, -100)):
        np.testing.assert_array_equal(array, 0)


def test_another_ignore_index():
    logits, labels = example(2.0)
    ignored = losses.cross_entropy(logits, labels, ignore_index=int(labels[2]))
    kept = labels != labels[2]
    np.testing.assert_array_equal(ignored[~kept], 0)
    np.testing.assert_allclose(ignored[kept], ours(logits, labels)[0][kept], rtol=1e-6)


def test_a_label_without_a_class_is_loud():
    logits, labels = example(2.0)
    labels[:3] = [V, -1, -99]
    values, gradient = ours(logits, labels)
    assert np.isnan(values[:3]).all()
    assert np.isnan(gradient[:3]).all()
    assert np.isfinite(values[3:]).all()
    assert np.isfinite(gradient[3:]).all()


def test_absent_classes():
    logits, labels = example(2.0)
    labels = np.clip(labels, 1, V - 15)
    logits[:, V - 14 :] = -np.inf
    values, gradient = ours(logits, labels)
    kept = logits[:, : V - 14]
    np.testing.assert_allclose(values, oracle.cross_entropy(kept, labels), RTOL, ATOL)
    np.testing.assert_allclose(gradient[:, : V - 14], gradient_truth(kept, labels), rtol=RTOL, atol=1e-8)
    np.testing.assert_array_equal(gradient[:, V - 14 :], 0)
    impossible, _ = ours(logits, np.full(B, V - 1))
    np.testing.assert_array_equal(impossible, np.inf)
    smoothed, _ = ours(logits, labels, 0.1)
    np.testing.assert_array_equal(smoothed, np.inf)


def test_one_class_is_certain():
    values, pull_back = jax.vjp(lambda x: losses.cross_entropy(x, jnp.zeros(3, jnp.int32)), jnp.ones((3, 1)) * 7)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull_back(jnp.ones(3))[0], 0)


def test_narrow_label_types_do_not_wrap():
    logits = jnp.zeros((2, 300)).at[:, 100].set(3.0)
    labels = jnp.asarray([100, 5], jnp.int8)
    expected = losses.cross_entropy(logits, labels.astype(jnp.int32))
    np.testing.assert_array_equal(losses.cross_entropy(logits, labels), expected)
    np.testing.assert_allclose(expected, oracle.cross_entropy(np.asarray(logits), np.array([100, 5])), RTOL)


def test_bad_arguments_are_named():
    logits, labels = jnp.zeros((2, 5)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=r"labels must be integer.*float32"):
        losses.cross_entropy(logits, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"labels must have.*\(2,\), got \(3,\)"):
        losses.cross_entropy(logits, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"logits must be floating point, got int32"):
        losses.cross_entropy(jnp.zeros((2, 5), jnp.int32), labels)
    with pytest.raises(ValueError, match=r"where must be bool"):
        losses.cross_entropy(logits, labels, where=jnp.ones(2))
    for smoothing in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"label_smoothing must lie in \[0, 1\], got {smoothing}"):
            losses.cross_entropy(logits, labels, label_smoothing=smoothing)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32, allow_subnormal=False), min_size=1, max_size=8), st.integers(0, 7))
def test_any_logits_match_float64(row, label):
    logits = np.full((B, V), -np.inf, np.float32)
    logits[:, : len(row)] = row
    labels = np.full(B, label % len(row))
    values, gradient = ours(logits, labels)
    kept = logits[:, : len(row)]
    np.testing.assert_allclose(values, oracle.cross_entropy(kept, labels), RTOL, ATOL)
    np.testing.assert_allclose(gradient[:, : len(row)], gradient_truth(kept, labels), rtol=RTOL, atol=1e-8)
