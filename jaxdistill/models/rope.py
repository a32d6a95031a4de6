"""Rotary position embedding (RoPE, arXiv:2104.09864) and three ways to stretch it, all in float32.

Pairs of channels are (i, i + H/2), as in Hugging Face's checkpoints.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxdistill.models.llama_config import RopeConfig
from jaxdistill.typing import Array, Float, Int

Rotation: TypeAlias = tuple[Array, Array]
"""Cosines and sines [1 or B, S, H/2] float32."""


def inverse_frequencies(rope: RopeConfig, size: int) -> Float[np.ndarray, " H/2"]:
    """Radians a position for each of the H/2 pairs, float32; dynamic RoPE's are those of sequences not stretched."""
    frequencies = rope.rope_theta ** -(np.arange(0, size, 2) / size)
    match rope.rope_type:
        case "linear":
            frequencies = frequencies / rope.factor
        case "llama3":
            frequencies = _llama3(frequencies, rope)
    return frequencies.astype(np.float32)


def rotation(
    rope: RopeConfig, size: int, positions: Int[Array, "B S"], lengths: Int[Array, "B S"] | None, original: int
) -> Rotation:
    """Cosines and sines for heads of `size` at `positions`.

    Args:
        rope: type and numbers.
        size: head size H.
        positions: of each token in its document, int32 [1 or B, S].
        lengths: for dynamic RoPE, the length of each token's document [1 or B, S]; None if none is beyond `original`.
        original: positions the model was trained with.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope, size)).reshape(1, 1, -1)
    if rope.rope_type == "dynamic" and lengths is not None:
        # theta grows with the length, "NTK-aware": theta · scale^(H/(H−2)).
        excess = jnp.maximum(lengths.astype(jnp.float32) / original, 1.0) - 1.0
        scale = (1.0 + rope.factor * excess)[..., None]
        frequencies = frequencies * scale ** jnp.asarray(-np.arange(0, size, 2) / (size - 2), jnp.float32).reshape(
            1, 1, -1
        )
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B S N H"], by: Rotation) -> Float[Array, "B S N H"]:
    """Every pair of channels turned by its angle; the result is in the dtype of x."""
    cosine, sine = (part[:, :, None] for part in by)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


def document_lengths(segments: Int[Array, "B S"], positions: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Length of each token's document: from its first position to its last."""
    same = segments[:, :, None] == segments[:, None, :]
    others = jnp.broadcast_to(positions[:, None, :], same.shape)
    last = jnp.max(others, axis=-1, where=same, initial=0)
    return last - jnp.min(others, axis=-1, where=same, initial=jnp.iinfo(jnp.int32).max) + 1


def _llama3(frequencies: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Llama 3.1's: long waves slowed by the factor, short ones kept, those between interpolated."""
    turns = rope.original_max_position_embeddings * frequencies / (2.0 * math.pi)  # within the original context
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(share, 0.0, 1.0)
    return (1.0 - kept) * frequencies / rope.factor + kept * frequencies
