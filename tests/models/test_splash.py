"""The TPU kernel, interpreted, against plain attention: values and gradients, windows, documents, and a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import jit

from jaxdistill.config.schema import ParallelConfig
from jaxdistill.models import splash as splash_module
from jaxdistill.models.causal_attention import causal_mask, explicit_attention
from jaxdistill.models.splash import fits, splash_attention
from jaxdistill.parallel.mesh import make_mesh

B, S, N, K, H = 2, 256, 4, 2, 16


def inputs():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(B, S, n, H)), jnp.float32) for n in (N, K, K))
    segments = np.repeat([[1, 2, 2, 3], [1, 1, 1, 0]], S // 4, axis=1).astype(np.int32)
    return query, key, value, segments


def value_and_gradients(attend, segments):
    real = (segments > 0).astype(np.float32)[..., None, None]

    def loss(query, key, value):
        out = attend(query, key, value)
        return jnp.sum(jnp.sin(out) * real), out

    return jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize(("window", "parts"), [(None, 8), (100, 8), (None, 0)])
def test_equals_plain_attention(window, parts, monkeypatch):
    monkeypatch.setattr(splash_module, "_MOST_PARTS", parts)  # one backward kernel, or two
    query, key, value, segments = inputs()
    mask = causal_mask(S, segments, window=window)

    def plain(q, k, v):
        return explicit_attention(q, k, v, mask)[0]

    def splash(q, k, v):
        return splash_attention(q, k, v, segments, window=window, interpret=True)

    (_, expected), expected_gradients = value_and_gradients(plain, segments)(query, key, value)
    (_, got), gradients = value_and_gradients(splash, segments)(query, key, value)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_is_split_over_a_mesh():
    query, key, value, segments = inputs()
    expected = jit(lambda q, k, v: splash_attention(q, k, v, segments, interpret=True))(query, key, value)
    assert not fits(S, N, K)  # eight devices, and nothing says how to split it
    with jax.set_mesh(make_mesh(ParallelConfig(data=2, fsdp=1, tensor=2))):
        assert fits(S, N, K)
        assert not fits(S, N, 1)
        assert not fits(S - 1, N, K)
        got = jit(lambda q, k, v: splash_attention(q, k, v, segments, interpret=True))(query, key, value)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert {shard.data.shape for shard in got.addressable_shards} == {(1, S, 2, H)}
