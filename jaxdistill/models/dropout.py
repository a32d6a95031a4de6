"""Dropout whose masks depend on the example, the place in the network and the position alone.

A mask is a cheap integer hash of (example seed, site, layer, position, channel). It is therefore the same for any split
of a batch into micro-batches or devices, for any padding length, and for a computation of one position alone; and it
is computed again in the backward pass instead of being kept. Arithmetic is murmur3's finaliser on 32-bit words.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial

import jax
import jax.numpy as jnp

from jaxdistill.typing import Array, Float, Int, PRNGKeyArray


class Site(IntEnum):
    """Where in the network a mask is drawn; each has masks of its own."""

    EMBEDDINGS = 1
    ATTENTION = 2
    ATTENTION_OUTPUT = 3
    FEED_FORWARD = 4
    POOLER = 5
    CLASSIFIER = 6


def example_seeds(key: PRNGKeyArray, example_id: Int[Array, " B"]) -> Array:
    """One uint32 seed per example, from `fold_in(key, example_id)`."""
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), jnp.uint32))(example_id)


def dropout(
    x: Float[Array, "B ..."], seeds: Array | None, *, rate: float, site: Site, layer: Array | int = 0
) -> Float[Array, "B ..."]:
    """Zeroes each element with probability `rate` and scales the others by 1/(1−rate); identity without `seeds`.

    The mask at (b, i, j, …) depends on seeds[b], site, layer and the coordinates, never on the shape.
    """
    if seeds is None or rate == 0.0:
        return x
    rows = _mix(seeds ^ _mix(jnp.asarray(layer).astype(jnp.uint32) * jnp.uint32(16) + jnp.uint32(site)))
    for axis in x.shape[1:-1]:
        rows = _mix(rows[..., None] ^ (_coordinates(rows.ndim, axis) * jnp.uint32(0x9E3779B9)))
    return _drop(x, rows, rate)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: Array, rows: Array, rate: float) -> Array:
    return jnp.where(_keep(rows, x.shape[-1], rate), x * (1.0 / (1.0 - rate)), jnp.zeros_like(x))


def _drop_forward(x: Array, rows: Array, rate: float) -> tuple[Array, Array]:
    return _drop(x, rows, rate), rows


def _drop_backward(rate: float, rows: Array, cotangent: Array) -> tuple[Array, None]:
    return _drop(cotangent, rows, rate), None


_drop.defvjp(_drop_forward, _drop_backward)


def _keep(rows: Array, width: int, rate: float) -> Array:
    """Boolean mask of shape [*rows, width]: two multiplications an element, the row's hash being well mixed already."""
    h = rows[..., None] ^ (_coordinates(rows.ndim, width) * jnp.uint32(0x9E3779B9))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)  # the high bits are the best mixed, and decide the comparison
    return h >= jnp.uint32(round(rate * 2**32))


def _mix(h: Array) -> Array:
    """murmur3's 32-bit finaliser: a bijection in which every input bit moves every output bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _coordinates(leading: int, size: int) -> Array:
    """1 … size along a last axis, after `leading` axes of size one (0 would leave the hash of the row as it is)."""
    return jax.lax.broadcasted_iota(jnp.uint32, (1,) * leading + (size,), leading) + jnp.uint32(1)
