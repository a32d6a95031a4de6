"""Dropout whose masks depend on the example, the place in the network and the position alone.

A mask is a cheap integer hash of (example seed, site, layer, position, channel). It is therefore the same for any split
of a batch into micro-batches or devices, for any padding length, for a computation of one position alone and for
examples packed into one row; and it is computed again in the backward pass instead of being kept. Arithmetic is
murmur3's finaliser on 32-bit words.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TypeAlias

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


@dataclass(frozen=True)
class PackedSeeds:
    """Where each query token of packed rows comes from: seeds of its example and its position there, both [B, Q].

    keys: positions of all the row's tokens, int [B, S].
    """

    tokens: Array
    positions: Array
    keys: Array


Seeds: TypeAlias = Array | PackedSeeds | None
"""One seed for each row [B], or for each token of packed ones; None: no dropout."""


def example_seeds(key: PRNGKeyArray, example_id: Int[Array, "*B"]) -> Array:
    """One uint32 seed per example, from `fold_in(key, example_id)`."""
    seeds = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), jnp.uint32))(example_id.reshape(-1))
    return seeds.reshape(example_id.shape)


def packed_seeds(
    examples: Array | None, segment_ids: Int[Array, "B S"], positions: Int[Array, "B S"]
) -> PackedSeeds | None:
    """Of tokens, from the seeds of a row's examples [B, G], of which segment g + 1 is number g."""
    if examples is None:
        return None
    tokens = jnp.take_along_axis(examples, jnp.maximum(segment_ids - 1, 0), axis=1, mode="clip")
    return PackedSeeds(tokens, positions, positions)


def at_first(seeds: Seeds, starts: Int[Array, "B G"]) -> Seeds:
    """Those of the first token of every example."""
    if not isinstance(seeds, PackedSeeds):
        return seeds
    tokens = jnp.take_along_axis(seeds.tokens, starts, axis=1, mode="clip")
    return PackedSeeds(tokens, jnp.zeros_like(starts), seeds.keys)


def dropout(
    x: Float[Array, "B ..."], seeds: Seeds, *, rate: float, site: Site, layer: Array | int = 0
) -> Float[Array, "B ..."]:
    """Zeroes each element with probability `rate` and scales the others by 1/(1−rate); identity without `seeds`.

    The mask at (b, i, j, …) depends on the seed of its example, site, layer and the coordinates, never on the shape.

    Args:
      x: [B, ...] with one seed for each row (or [B, G, D] with one for each of [B, G]); with `PackedSeeds` tokens
        [B, Q, D], or attention of heads, queries and keys [B, N, Q, S].
    """
    if seeds is None or rate == 0.0:
        return x
    place = _mix(jnp.asarray(layer).astype(jnp.uint32) * jnp.uint32(16) + jnp.uint32(site))
    if not isinstance(seeds, PackedSeeds):
        rows = _mix(seeds ^ place)
        for axis in x.shape[seeds.ndim : -1]:
            rows = _at(rows[..., None], _coordinates(rows.ndim, axis))
        return _drop(x, rows, _coordinates(rows.ndim, x.shape[-1]), rate)
    rows, queries = _mix(seeds.tokens ^ place), seeds.positions.astype(jnp.uint32) + jnp.uint32(1)
    if x.ndim == 3:
        return _drop(x, _at(rows, queries), _coordinates(2, x.shape[-1]), rate)
    heads = _coordinates(1, x.shape[1]).reshape(1, -1, 1)
    keys = seeds.keys.astype(jnp.uint32)[:, None, None] + jnp.uint32(1)
    return _drop(x, _at(_at(rows[:, None], heads), queries[:, None]), keys, rate)


def _at(rows: Array, coordinate: Array) -> Array:
    """The hash of the rows so far and one more coordinate."""
    return _mix(rows ^ (coordinate * jnp.uint32(0x9E3779B9)))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _drop(x: Array, rows: Array, last: Array, rate: float) -> Array:
    return jnp.where(_keep(rows, last, rate), x * (1.0 / (1.0 - rate)), jnp.zeros_like(x))


def _drop_forward(x: Array, rows: Array, last: Array, rate: float) -> tuple[Array, tuple[Array, Array]]:
    return _drop(x, rows, last, rate), (rows, last)


def _drop_backward(rate: float, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, None, None]:
    return _drop(cotangent, *kept, rate), None, None


_drop.defvjp(_drop_forward, _drop_backward)


def _keep(rows: Array, last: Array, rate: float) -> Array:
    """Boolean mask [..., W]: two multiplications an element, the row's hash being well mixed already."""
    h = rows[..., None] ^ (last * jnp.uint32(0x9E3779B9))
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
