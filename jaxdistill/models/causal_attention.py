"""Causal attention within documents, by the implementation the device supports; all give the same result.

"xla" is `jax.nn.dot_product_attention` with a mask, on any device. "cudnn" is its fused kernel on NVIDIA GPUs, whose
conditions we check and which no device of ours has run. "splash" is a kernel for TPUs (see `splash`), run interpreted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.models.attention import same_segment
from jaxdistill.parallel.target import target_device
from jaxdistill.typing import Array, Bool, Float, Int

_SMALLEST_BLOCK, _MOST_BLOCKS = 128, 4
"""Of the queries: what lies behind a block is not computed, which four blocks make three eighths of all."""

IMPLEMENTATIONS = ("auto", "xla", "blocks", "cudnn", "splash")


def causal_attention(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    segments: Int[Array, "B S"] | None,
    *,
    window: int | None = None,
    implementation: str = "auto",
) -> Float[Array, "B S N H"]:
    """softmax(query · keyᵀ / √H) · value over the tokens a query sees; float32 softmax, the result in query's dtype.

    Args:
        query: N heads, N a multiple of K.
        key: K heads, each shared by N/K neighbouring query heads.
        value: K heads.
        segments: a token sees only tokens of its own segment; None means one segment.
        window: tokens a query sees at most, itself included; None means all before it.
        implementation: one of `IMPLEMENTATIONS`; "auto" is what the device supports that is traced for.
    """
    if implementation == "auto":
        implementation = _best(query, key)
    if implementation == "splash":
        from jaxdistill.models.splash import splash_attention  # Pallas is slow to import, and only TPUs need it

        return splash_attention(query, key, value, segments, window=window)
    if implementation == "cudnn":
        mask = None if segments is None else same_segment(segments)[:, None]
        left = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=True, local_window_size=left, implementation="cudnn"
        )
    if implementation == "blocks":
        return _by_blocks(query, key, value, segments, window)
    mask = causal_mask(query.shape[1], segments, window=window)
    with jax.numpy_dtype_promotion("standard"):  # its own code mixes bfloat16 and float32
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def _by_blocks(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    segments: Int[Array, "B S"] | None,
    window: int | None,
) -> Float[Array, "B S N H"]:
    """Blocks of queries against the keys that any of them sees, the queries that share a key as rows of one matrix.

    Softmax's divisor divides the context, not the probabilities: no pass over them but one exponential is left.
    """
    batch, length, _, size = query.shape
    shared = key.shape[2]
    grouped = (query * size**-0.5).reshape(batch, length, shared, -1, size).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    contexts = []
    block = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window + 1)
        rows = grouped[:, :, :, start:stop].reshape(batch, shared, -1, size)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        scores = jnp.einsum("bkqh,bksh->bkqs", rows, keys, preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, shared, -1, stop - start, stop - first)
        seen = _seen(range(start, stop), range(first, stop), segments, window)[:, None]
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        divisor = jnp.sum(weights, axis=-1, keepdims=True)
        rows = weights.reshape(batch, shared, -1, stop - first).astype(value.dtype)
        context = jnp.einsum("bkqs,bksh->bkqh", rows, values, preferred_element_type=jnp.float32)
        contexts.append(context.reshape(*divisor.shape[:-1], size) / divisor)
    context = jnp.concatenate(contexts, axis=3).transpose(0, 3, 1, 2, 4)
    return context.reshape(query.shape).astype(query.dtype)


def _seen(
    queries: range, keys: range, segments: Int[Array, "B S"] | None, window: int | None
) -> Bool[Array, "B 1 Q S"]:
    """What each of these queries sees of these keys."""
    query = jnp.arange(queries.start, queries.stop, dtype=jnp.int32)[None, None, :, None]
    key = jnp.arange(keys.start, keys.stop, dtype=jnp.int32)[None, None, None]
    seen = key <= query
    if window is not None and window < queries.stop:
        seen &= query - key < window
    if segments is None:
        return seen
    of_queries, of_keys = (segments[:, part.start : part.stop] for part in (queries, keys))
    return seen & (of_queries[:, None, :, None] == of_keys[:, None, None, :])


def explicit_attention(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 S S"],
) -> tuple[Float[Array, "B S N H"], Float[Array, "B N S S"], Float[Array, "B N S S"]]:
    """(context, attentions, attention scores before mask and softmax): the same, its probabilities given back."""
    batch, length, heads, size = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, size)
    scores = jnp.einsum("bqkgh,bskh->bkgqs", grouped, key, preferred_element_type=jnp.float32) * size**-0.5
    scores = scores.reshape(batch, heads, length, length)
    attentions = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    shared = attentions.astype(value.dtype).reshape(batch, key.shape[2], -1, length, length)
    context = jnp.einsum("bkgqs,bskh->bqkgh", shared, value).reshape(query.shape)
    return context, attentions, scores


def causal_mask(length: int, segments: Int[Array, "B S"] | None, *, window: int | None) -> Bool[Array, "B 1 S S"]:
    """What each query sees: itself, and of its segment what came before (within the window). No row is empty."""
    query, key = (jax.lax.broadcasted_iota(jnp.int32, (1, 1, length, length), axis) for axis in (2, 3))
    seen = key <= query
    if window is not None and window < length:
        seen &= query - key < window
    return seen if segments is None else seen & same_segment(segments)[:, None]


def _best(query: Array, key: Array) -> str:
    """What the device that is traced for supports for these shapes and dtypes."""
    device = target_device()
    length, heads, size = query.shape[1:]
    if device.platform == "tpu":
        from jaxdistill.models.splash import fits

        return "splash" if fits(length, heads, key.shape[2]) else "xla"
    # cuDNN's flash attention takes 16-bit heads of at most 128 channels, a multiple of 8, from Ampere on
    flash = query.dtype == jnp.bfloat16 and size <= 128 and size % 8 == 0 and length % 2 == 0
    if device.platform == "gpu" and flash and "cuda" in device.client.platform_version.lower():
        return "cudnn" if float(device.compute_capability) >= 8.0 else "xla"
    return "blocks" if device.platform == "cpu" else "xla"
