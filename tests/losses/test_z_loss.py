"""The z-loss against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp, softmax

from jaxdistill import losses


def test_value_and_gradient_with_nan_behind_the_mask():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (7, 40)).astype(np.float32)
    logits[0, :30] = -np.inf
    where = np.arange(7) != 3
    logits[3] = np.nan

    def total(logits):
        return jnp.sum(losses.z_loss(logits, where=jnp.asarray(where)))

    value, gradient = jax.value_and_grad(total)(jnp.asarray(logits))
    normalizer = logsumexp(logits[where].astype(np.float64), axis=-1)
    np.testing.assert_allclose(value, (normalizer**2).sum(), rtol=3e-6)
    expected = np.zeros((7, 40))
    expected[where] = 2 * normalizer[:, None] * softmax(logits[where].astype(np.float64), axis=-1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_nothing_counted_is_zero():
    assert float(losses.z_loss(jnp.full((2, 3), jnp.nan), where=jnp.zeros(2, bool)).sum()) == 0.0
