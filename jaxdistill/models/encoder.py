"""The encoders' transformer layer."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxdistill.models.attention import SelfAttention, first_tokens
from jaxdistill.models.config import EncoderConfig
from jaxdistill.models.dropout import Seeds, Site, at_first, dropout
from jaxdistill.models.layers import Dense, LayerNorm, activation
from jaxdistill.typing import Array, Bool, Float, Int


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with dropout, a residual and layer norm after it (post-LN)."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width, inner, stddev = (config.hidden_size, config.intermediate_size, config.initializer_range)
        self.attention = SelfAttention(config, dtype=dtype)
        self.attention_norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.intermediate = Dense((width,), (inner,), stddev=stddev, dtype=dtype)
        self.output = Dense((inner,), (width,), stddev=stddev, dtype=dtype)
        self.output_norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        allowed: Bool[Array, "B 1 _ S"],
        seeds: Seeds,
        layer: Array | int,
        wanted: frozenset[str] = frozenset(),
        first_only: bool = False,
        starts: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        """The layer's output and the signals in `wanted`.

        first_only: of the first position of every example alone (Q = 1); in packed rows those are `starts` (Q = G).
        """
        config = self.config
        if first_only and starts is not None:
            seeds, allowed = at_first(seeds, starts), first_tokens(allowed[:, 0], starts)[:, None]
        attended, signals = self.attention(
            x, allowed, seeds=seeds, layer=layer, wanted=wanted, first_only=first_only, starts=starts
        )
        attended = checkpoint_name(attended, "attention_output")
        # DistilBERT has no dropout between its attention's output projection and the residual.
        rate = 0.0 if config.model_type == "distilbert" else config.hidden_dropout_prob
        attended = dropout(attended, seeds, rate=rate, site=Site.ATTENTION_OUTPUT, layer=layer)
        x = self.attention_norm(attended + (first_tokens(x, starts) if first_only else x))
        inner = self.output(activation(config.hidden_act)(self.intermediate(x)))
        inner = checkpoint_name(inner, "feed_forward_output")
        inner = dropout(inner, seeds, rate=config.hidden_dropout_prob, site=Site.FEED_FORWARD, layer=layer)
        x = self.output_norm(inner + x)
        return x, signals | ({"hidden_states": x} if "hidden_states" in wanted else {})
