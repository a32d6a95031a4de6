"""Multi-head self-attention: one fused query/key/value product, float32 scores, what is asked for and no more."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.config import EncoderConfig
from jaxdistill.models.dropout import Seeds, Site, dropout
from jaxdistill.models.layers import Dense, affine, on_one_cpu
from jaxdistill.typing import Array, Bool, Float, Int


class SelfAttention(nnx.Module):
    """Bidirectional self-attention; qkv kernel [D, 3, N, H], output kernel [N, H, D]."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width, heads, size = (config.hidden_size, config.num_attention_heads, config.head_size)
        stddev = config.initializer_range
        self.qkv = Dense((width,), (3, heads, size), stddev=stddev, dtype=dtype)
        self.output = Dense((heads, size), (width,), stddev=stddev, dtype=dtype)
        self.rate = config.attention_probs_dropout_prob
        self.dtype = dtype

    def __call__(
        self,
        x: Float[Array, "B S D"],
        allowed: Bool[Array, "B 1 _ S"],
        *,
        seeds: Seeds,
        layer: Array | int,
        wanted: frozenset[str] = frozenset(),
        first_only: bool = False,
        starts: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        """Attention output, and the signals in `wanted` among attentions, attention_scores and qkv.

        first_only computes the queries of first positions alone (`first_tokens`: Q = 1, or G of packed rows); keys and
        values are of every position. `allowed` and `seeds` are those of the queries.
        """
        query, key, value = self._project(x, first_only=first_only, starts=starts)
        signals = {"qkv": jnp.stack([query, key, value])} if "qkv" in wanted else {}
        # Heads first and the scale on the queries: XLA's CPU backend then copies each operand once.
        query, key, value = (jnp.swapaxes(array, 1, 2) for array in (query * query.shape[-1] ** -0.5, key, value))
        scores = jnp.einsum("bnqh,bnkh->bnqk", query, key, preferred_element_type=jnp.float32)
        attentions = _softmax(scores + jnp.where(allowed, 0.0, self._floor()))
        signals |= {
            name: array for name, array in (("attentions", attentions), ("attention_scores", scores)) if name in wanted
        }
        kept = dropout(attentions, seeds, rate=self.rate, site=Site.ATTENTION, layer=layer).astype(self.dtype)
        context = jnp.swapaxes(jnp.einsum("bnqk,bnkh->bnqh", kept, value), 1, 2)
        return self.output(context), signals

    def _floor(self) -> Array | float:
        """The most negative finite float32, so that an all-masked row stays finite.

        On a CPU each layer has it from its own parameters, whose addend is rounded away: of a constant XLA would make
        one array [B, N, S, S] for all layers, and writing and reading that takes longer than making it in each.
        """
        floor = float(jnp.finfo(jnp.float32).min)
        if not on_one_cpu():
            return floor
        return floor + jax.lax.stop_gradient(self.qkv.bias[0, 0, 0]).astype(jnp.float32)

    def _project(self, x: Array, *, first_only: bool, starts: Array | None) -> tuple[Array, Array, Array]:
        """Queries [B, Q, N, H], keys and values [B, S, N, H]."""
        if not first_only:
            query, key, value = jax.lax.split(self.qkv(x), (1, 1, 1), axis=2)
            return query[:, :, 0], key[:, :, 0], value[:, :, 0]
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        query = affine(first_tokens(x, starts), kernel[:, 0], bias[0], dtype=self.dtype)
        key, value = jax.lax.split(affine(x, kernel[:, 1:], bias[1:], dtype=self.dtype), (1, 1), axis=2)
        return query, key[:, :, 0], value[:, :, 0]


def allowed_keys(attention_mask: Array, segment_ids: Array | None = None) -> Bool[Array, "B 1 _ S"]:
    """Which keys may be attended to: where the mask is set; with segments [B, 1, S, S], in a token's own alone."""
    allowed = attention_mask[:, None, None, :].astype(bool)
    return allowed if segment_ids is None else allowed & same_segment(segment_ids)[:, None]


def same_segment(segment_ids: Array) -> Bool[Array, "B S S"]:
    """Which tokens (last axis) are in the segment of each token."""
    return segment_ids[:, :, None] == segment_ids[:, None, :]


def first_tokens(x: Array, starts: Int[Array, "B G"] | None) -> Array:
    """x [B, S, ...] at the first token of every example: [B, 1, ...], or [B, G, ...] where packed rows begin them."""
    if starts is None:
        return x[:, :1]
    places = starts.reshape(*starts.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode="clip")


@jax.custom_jvp
def _softmax(x: Array) -> Array:
    """Softmax over the last axis; one division a row, and only the result is kept for the backward pass."""
    exponentials = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return exponentials * (1.0 / jnp.sum(exponentials, axis=-1, keepdims=True))


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    probabilities, tangent = _softmax(primals[0]), tangents[0]
    return probabilities, probabilities * (tangent - jnp.sum(probabilities * tangent, axis=-1, keepdims=True))
