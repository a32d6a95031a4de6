from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import losses


def test_sum_and_count_over_counted_positions():
    values = jnp.asarray([[1.0, 2.0, jnp.nan], [4.0, jnp.inf, 6.0]])
    where = jnp.asarray([[1, 1, 0], [1, 0, 0]], bool)
    total, count = losses.masked_sum_count(values, where)
    assert (total, count) == (7.0, 3.0)
    assert total.dtype == count.dtype == jnp.float32
    np.testing.assert_allclose(losses.masked_mean(values, where), 7 / 3, rtol=1e-6)


def test_no_mask_counts_everything():
    values = jnp.asarray([[1.0, 2.0], [3.0, 4.0]], jnp.bfloat16)
    assert losses.masked_sum_count(values, None) == (10.0, 4.0)
    assert losses.masked_mean(values, None) == 2.5


def test_nothing_counted_is_zero_with_zero_gradient():
    values, where = jnp.asarray([jnp.nan, 1.0]), jnp.zeros(2, bool)
    assert losses.masked_sum_count(values, where) == (0.0, 0.0)
    mean, gradient = jax.value_and_grad(losses.masked_mean)(values, where)
    assert mean == 0
    np.testing.assert_array_equal(gradient, 0)


def test_micro_batches_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    values, where = rng.normal(size=(8, 3)).astype(np.float32), rng.random((8, 3)) < 0.5
    parts = [losses.masked_sum_count(v, w) for v, w in zip(np.split(values, 4), np.split(where, 4), strict=True)]
    total, count = (sum(part) for part in zip(*parts, strict=True))
    np.testing.assert_allclose(total / count, losses.masked_mean(values, where), rtol=1e-6)
    np.testing.assert_allclose(total / count, values[where].mean(dtype=np.float64), rtol=1e-6)


def test_a_count_beyond_float32_integers_does_not_stand_still():
    where = jnp.ones((2**24 + 2,), bool)
    count = jax.jit(lambda w: losses.masked_sum_count(jnp.zeros(w.shape), w)[1])(where)
    assert count == 2**24 + 2


def test_bad_masks_are_named():
    values = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"where must be bool.*float32"):
        losses.masked_mean(values, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"where must have the result's shape \(2, 3\), got \(2,\)"):
        losses.masked_sum_count(values, jnp.ones(2, bool))
