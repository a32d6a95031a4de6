"""The decoder that Llama, Mistral, Qwen2 and Qwen3 are configurations of, with its language-model head.

Llama: arXiv:2302.13971, arXiv:2407.21783; Mistral (sliding window): arXiv:2310.06825; Qwen2 (biases of queries, keys
and values): arXiv:2407.10671; Qwen3 (normalised queries and keys): arXiv:2505.09388.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxdistill.models.causal_attention import causal_attention, causal_mask, explicit_attention
from jaxdistill.models.init import weight
from jaxdistill.models.layers import Dense, RMSNorm, activation
from jaxdistill.models.llama_config import LlamaConfig
from jaxdistill.models.lookup import lookup
from jaxdistill.models.outputs import Request
from jaxdistill.models.rope import Rotation, document_lengths, rotate, rotation
from jaxdistill.models.stack import Layers, Stack
from jaxdistill.typing import Array, Batch, Float, Int


class GroupedQueryAttention(nnx.Module):
    """Causal attention whose K keys and values are shared by N/K queries each (arXiv:2305.13245).

    Kernels: query [D, N, H], key and value [D, K, H], output [N, H, D].
    """

    def __init__(self, config: LlamaConfig, *, dtype: jnp.dtype, implementation: str) -> None:
        width, size = config.hidden_size, config.head_dim
        dense = partial(Dense, stddev=config.initializer_range, dtype=dtype)
        self.query = dense((width,), (config.num_attention_heads, size), use_bias=config.attention_bias)
        self.key = dense((width,), (config.num_key_value_heads, size), use_bias=config.attention_bias)
        self.value = dense((width,), (config.num_key_value_heads, size), use_bias=config.attention_bias)
        self.output = dense((config.num_attention_heads, size), (width,), use_bias=config.output_bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(size, eps=config.rms_norm_eps, dtype=dtype)
            self.key_norm = RMSNorm(size, eps=config.rms_norm_eps, dtype=dtype)
        self.qk_norm = config.qk_norm
        self.implementation = implementation

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        rotation: Rotation,
        segments: Int[Array, "B S"] | None,
        window: int | None,
        wanted: frozenset[str],
    ) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
        """Attention output, and the signals in `wanted` among attentions, attention_scores and qkv."""
        query, key, value = self.heads(x, rotation)
        signals = {}
        if "qkv" in wanted:
            shared = query.shape[2] // key.shape[2]
            signals["qkv"] = jnp.stack([query, jnp.repeat(key, shared, axis=2), jnp.repeat(value, shared, axis=2)])
        if wanted & {"attentions", "attention_scores"}:
            mask = causal_mask(x.shape[1], segments, window=window)
            context, attentions, scores = explicit_attention(query, key, value, mask)
            both = {"attentions": attentions, "attention_scores": scores}
            signals |= {name: array for name, array in both.items() if name in wanted}
        else:
            context = causal_attention(query, key, value, segments, window=window, implementation=self.implementation)
        return self.output(context), signals

    def heads(
        self, x: Float[Array, "B S D"], rotation: Rotation
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Queries, keys and values; queries and keys normalised, if they are, and rotated."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        return rotate(query, rotation), rotate(key, rotation), value


class DecoderLayer(nnx.Module):
    """Attention and a gated feed-forward (SwiGLU, arXiv:2002.05202), each on an RMS norm of x and added to x."""

    def __init__(self, config: LlamaConfig, *, dtype: jnp.dtype, implementation: str) -> None:
        width, inner = config.hidden_size, config.intermediate_size
        norm = partial(RMSNorm, width, eps=config.rms_norm_eps, dtype=dtype)
        dense = partial(Dense, stddev=config.initializer_range, dtype=dtype, use_bias=config.mlp_bias)
        self.attention_norm = norm()
        self.attention = GroupedQueryAttention(config, dtype=dtype, implementation=implementation)
        self.feed_forward_norm = norm()
        self.gate = dense((width,), (inner,))
        self.up = dense((width,), (inner,))
        self.down = dense((inner,), (width,))
        self.hidden_act = config.hidden_act

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        rotation: Rotation,
        segments: Int[Array, "B S"] | None,
        window: int | None,
        wanted: frozenset[str] = frozenset(),
    ) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
        """The layer's output and the signals in `wanted`."""
        attended, signals = self.attention(
            self.attention_norm(x), rotation=rotation, segments=segments, window=window, wanted=wanted
        )
        x = x + checkpoint_name(attended, "attention_output")
        x = x + checkpoint_name(self.down(self.gated(self.feed_forward_norm(x))), "feed_forward_output")
        return x, signals | ({"hidden_states": x} if "hidden_states" in wanted else {})

    def gated(self, normed: Float[Array, "B S D"]) -> Float[Array, "B S F"]:
        """The feed-forward's inner units."""
        return activation(self.hidden_act)(self.gate(normed)) * self.up(normed)


class TokenEmbeddings(nnx.Module):
    """The word table [V, D], which is the head as well where embeddings are tied."""

    def __init__(self, config: LlamaConfig, *, dtype: jnp.dtype) -> None:
        self.word = weight((config.vocab_size, config.hidden_size), stddev=config.initializer_range)
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Rows of the table."""
        return lookup(self.word[...], ids, dtype=self.dtype)


class CausalLMNetwork(nnx.Module):
    """Word embeddings, decoder, final norm, head. Predicting the next token is the loss's shift, not the model's."""

    def __init__(self, config: LlamaConfig, *, dtype: jnp.dtype, implementation: str) -> None:
        width = config.hidden_size
        self.embeddings = TokenEmbeddings(config, dtype=dtype)
        layer = partial(DecoderLayer, config, dtype=dtype, implementation=implementation)
        self.decoder = Stack(layer, config.num_hidden_layers)
        self.norm = RMSNorm(width, eps=config.rms_norm_eps, dtype=dtype)
        if not config.tie_word_embeddings:
            stddev = config.initializer_range
            self.head = Dense((width,), (config.vocab_size,), stddev=stddev, dtype=dtype, use_bias=False)
        self.config = config
        self.dtype = dtype

    def __call__(self, batch: Batch, layers: Layers, *, request: Request) -> dict[str, Any]:
        """The signals asked for; logits are [B, S, V]. The last hidden states are those after the final norm."""
        ids, segments = batch["input_ids"], _segments(batch)
        signals: dict[str, Any]
        hidden, signals = layers(
            self.embeddings(ids),
            request=request,
            each=[{"window": self._window(layer, ids.shape[1])} for layer in range(layers.count)],
            final=self.norm,
            rotation=self._rotation(batch, segments),
            segments=segments,
        )
        if "last_hidden" in request.names:
            signals["last_hidden"] = hidden
        if "logits" in request.names:
            kernel = self._head_kernel().astype(self.dtype)
            signals["logits"] = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        if "head" in request.names:
            signals["head"] = {"input": hidden, "kernel": self._head_kernel()}
            if self.config.tie_word_embeddings:
                signals["head"]["table"] = self.embeddings.word[...]
        return signals

    def _head_kernel(self) -> Float[Array, "D V"]:
        return self.embeddings.word[...].T if self.config.tie_word_embeddings else self.head.kernel[...]

    def _window(self, layer: int, length: int) -> int | None:
        """The layer's window, None when the sequence fits in it: layers that do the same are one scan."""
        window = self.config.window(layer)
        return window if window is not None and window < length else None

    def _rotation(self, batch: Batch, segments: Array | None) -> Rotation:
        config, length = self.config, batch["input_ids"].shape[1]
        positions = batch.get("positions")
        if positions is None:  # attention sees their differences alone, so packed documents need no reset
            positions = jnp.arange(length, dtype=jnp.int32)[None]
        lengths = None
        if config.rope.rope_type == "dynamic" and length > config.max_position_embeddings:
            lengths = jnp.full_like(positions, length)
            if segments is not None:
                lengths = document_lengths(segments, jnp.broadcast_to(positions, segments.shape))
        return rotation(config.rope, config.head_dim, positions, lengths, config.max_position_embeddings)


def _segments(batch: Batch) -> Int[Array, "B S"] | None:
    """The document each token belongs to, 0 for padding; None if the batch tells of neither documents nor padding."""
    segments, mask = batch.get("segment_ids"), batch.get("attention_mask")
    if segments is None:
        return mask
    return segments if mask is None else jnp.where(mask.astype(bool), segments, 0)
