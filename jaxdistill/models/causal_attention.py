"""Causal attention within documents, by the implementation the device supports; all give the same result.

"xla" is `jax.nn.dot_product_attention` with a mask, on any device. "cudnn" is its fused kernel on NVIDIA GPUs, whose
conditions we check and which no device of ours has run. "splash" is a kernel for TPUs (see `splash`), run interpreted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.typing import Array, Bool, Float, Int

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")


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
        implementation: one of `IMPLEMENTATIONS`; "auto" is what the default device supports.
    """
    if implementation == "auto":
        implementation = _best(query, key)
    if implementation == "splash":
        from jaxdistill.models.splash import splash_attention  # Pallas is slow to import, and only TPUs need it

        return splash_attention(query, key, value, segments, window=window)
    if implementation == "cudnn":
        mask = None if segments is None else _same_segment(segments)
        left = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=True, local_window_size=left, implementation="cudnn"
        )
    mask = causal_mask(query.shape[1], segments, window=window)
    with jax.numpy_dtype_promotion("standard"):  # its own code mixes bfloat16 and float32
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


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
    return seen if segments is None else seen & _same_segment(segments)


def _same_segment(segments: Int[Array, "B S"]) -> Bool[Array, "B 1 S S"]:
    return segments[:, None, :, None] == segments[:, None, None, :]


def _best(query: Array, key: Array) -> str:
    """What the default device supports for these shapes and dtypes."""
    device = jax.devices()[0]
    length, heads, size = query.shape[1:]
    if device.platform == "tpu":
        from jaxdistill.models.splash import fits

        return "splash" if fits(length, heads, key.shape[2]) else "xla"
    # cuDNN's flash attention takes 16-bit heads of at most 128 channels, a multiple of 8, from Ampere on
    flash = query.dtype == jnp.bfloat16 and size <= 128 and size % 8 == 0 and length % 2 == 0
    if device.platform == "gpu" and flash and "cuda" in device.client.platform_version.lower():
        return "cudnn" if float(device.compute_capability) >= 8.0 else "xla"
    return "xla"
