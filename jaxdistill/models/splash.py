"""Splash attention: JAX's Pallas kernel for TPUs, which never holds an S × S array and skips blocks nobody sees."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from jaxdistill.parallel.mesh import AXES
from jaxdistill.parallel.target import target_count
from jaxdistill.typing import Array, Float, Int

_BLOCKS = (512, 256, 128)
_MOST_PARTS = 8
"""One backward kernel computes scores and their gradients once instead of twice, but leaves the queries' gradient in as
many parts as there are blocks of keys, to be added up: worth it as long as they are few."""


def fits(length: int, heads: int, kv_heads: int) -> bool:
    """Whether the kernel takes sequences of this length, and can be split over the devices.

    How to split it the mesh in context says (`jax.set_mesh`); without one it runs where there is one device only.
    """
    axes = _mesh_axes()
    if not axes and target_count() > 1:
        return False
    split = axes.get(AXES[-1], 1)
    return length % _BLOCKS[-1] == 0 and heads % split == 0 and kv_heads % split == 0


def splash_attention(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    segments: Int[Array, "B S"] | None,
    *,
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """As `causal_attention`; S must be a multiple of 128. Compiled for TPUs and run interpreted, never run on one.

    The compiler cannot split a kernel, so under `jax.set_mesh` it is split here: batch over data and fsdp, heads over
    tensor. `interpret` runs it on any device, slowly.
    """
    attend = partial(_attend, window=window, interpret=interpret)
    segments = jnp.zeros(query.shape[:2], jnp.int32) if segments is None else segments.astype(jnp.int32)
    axes = _mesh_axes()
    if not axes:
        return attend(query, key, value, segments)
    batch = tuple(axis for axis in AXES[:-1] if axis in axes)
    heads = PartitionSpec(batch, None, AXES[-1] if AXES[-1] in axes else None, None)
    split = jax.shard_map(
        attend, in_specs=(heads, heads, heads, PartitionSpec(batch, None)), out_specs=heads, check_vma=False
    )
    return split(query, key, value, segments)


def _attend(query: Array, key: Array, value: Array, segments: Array, *, window: int | None, interpret: bool) -> Array:
    """On one device."""
    length, heads, size = query.shape[1:]
    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    block = next(block for block in _BLOCKS if length % block == 0)
    once = length // block <= _MOST_PARTS
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", *(() if once else ("block_q_dq", "block_kv_dq")))
    blocks: Any = dict.fromkeys(names, block)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**blocks, use_fused_bwd_kernel=once),
        interpret=interpret,
    )
    scaled = query * jnp.asarray(size**-0.5, query.dtype)
    first = (jnp.swapaxes(array, 1, 2) for array in (scaled, key, value))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as its own code wants
        context: Any = jax.vmap(kernel)(*first, segment_ids=kernels.SegmentIds(segments, segments))
    return jnp.swapaxes(context, 1, 2).astype(query.dtype)


def _mesh_axes() -> dict[str, int]:
    """Sizes of the axes of the mesh in context; empty if there is none."""
    return dict(jax.sharding.get_abstract_mesh().shape)
