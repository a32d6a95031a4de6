"""Class ids in as few bits as the vocabulary needs: 17 for 128,256 classes instead of 32."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxdistill.typing import Array, Int

MOST_BITS = 25
"""An id, wherever in a byte it begins, lies within four bytes."""


def bits_of(classes: int) -> int:
    """Bits that an id below `classes` needs."""
    return max(1, (classes - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many ids take."""
    return -(-count * bits // 8)


def pack_ids(ids: Int[Array, "*B K"], *, bits: int) -> Int[Array, "*B P"]:
    """Ids below 2^bits, one after another, lowest bit first: uint8 [..., packed_bytes(K, bits)]."""
    each = (ids[..., None].astype(jnp.uint32) >> _ranked(jnp.arange(bits), ids.ndim + 1)) & jnp.uint32(1)
    stream = each.reshape(*ids.shape[:-1], ids.shape[-1] * bits)
    missing = -stream.shape[-1] % 8
    padded = jnp.pad(stream, (*((0, 0),) * (stream.ndim - 1), (0, missing)))
    in_bytes = padded.reshape(*stream.shape[:-1], -1, 8) << _ranked(jnp.arange(8), ids.ndim + 1)
    return jnp.sum(in_bytes, axis=-1, dtype=jnp.uint32).astype(jnp.uint8)


def unpack_ids(packed: Int[Array, "*B P"], *, bits: int, count: int) -> Int[Array, "*B K"]:
    """int32 [..., count]: what `pack_ids` was given."""
    first_bit = np.arange(count) * bits
    word = jnp.zeros((*packed.shape[:-1], count), jnp.uint32)
    for byte in range(4):
        # beyond the last byte there is nothing of this id, and whatever is read instead is masked off
        place = np.minimum(first_bit // 8 + byte, packed.shape[-1] - 1)
        word |= packed[..., place].astype(jnp.uint32) << jnp.uint32(8 * byte)
    shifted = word >> _ranked(jnp.asarray(first_bit % 8), packed.ndim)
    return (shifted & jnp.uint32(2**bits - 1)).astype(jnp.int32)


def _ranked(array: Int[Array, " n"], rank: int) -> Int[Array, "*ones n"]:
    """uint32, with leading axes of 1."""
    return array.astype(jnp.uint32).reshape(*(1,) * (rank - 1), -1)
