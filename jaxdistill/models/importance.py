"""How much each head, feed-forward unit and channel of a decoder does on a batch of text.

Importance is activation-based as in Minitron (arXiv:2407.14679): mean absolute activation over all tokens. What heads
and units do is weighted by what the weights make of it, so that it is the size of what they add to the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.build import Model, structure
from jaxdistill.models.causal_attention import causal_attention
from jaxdistill.models.layers import RMSNorm
from jaxdistill.models.llama import DecoderLayer
from jaxdistill.models.outputs import Request
from jaxdistill.models.rope import Rotation
from jaxdistill.models.stack import Layers
from jaxdistill.typing import Array, Batch, Bool, Float, Int, Params

_OF_LAYERS = ("heads", "units", "channels", "energy")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Importance:
    """Sums over the tokens of one or several batches, float32; padding is not counted.

    heads: size of what each query head adds to the hidden states. units: of what each feed-forward unit adds.
    channels: absolute normed value, at each layer's two norms, and at the final one. energy: square of a channel over
    the mean square of all, there.
    """

    tokens: Float[Array, ""]
    heads: Float[Array, "L N"]
    units: Float[Array, "L F"]
    channels: Float[Array, "L 2 D"]
    energy: Float[Array, "L 2 D"]
    final_channels: Float[Array, " D"]
    final_energy: Float[Array, " D"]

    def __add__(self, other: Importance) -> Importance:
        """Of both batches."""
        return jax.tree.map(jnp.add, self, other)


@partial(jax.jit, static_argnames=("model",))
def decoder_importance(model: Model, params: Params, batch: Batch) -> Importance:
    """What each part of a decoder does on a batch; float32 sums whatever the model computes in.

    Args:
        model: a decoder.
        params: its parameters, layers stacked.
        batch: input_ids [B, S], segment_ids (0 = padding) and positions as `Model.apply` takes them.
    """
    parts = structure(model)
    count = model.config.num_hidden_layers
    outer = {name: leaf for name, leaf in params.items() if name != parts.stack}
    network = nnx.merge(parts.outer, nnx.State(outer))
    request = Request(frozenset(), tuple((name, tuple(range(count))) for name in _OF_LAYERS))
    layers = _MeasuredLayers(parts.layer, params[parts.stack]["layers"], count)
    return Importance(**network(batch, layers, request=request))


@dataclass(frozen=True)
class _MeasuredLayers(Layers):
    """Layers that give back, instead of the signals, what their parts did."""

    def __call__(self, x: Array, *, request: Request, final: Callable[[Array], Array] | None = None, **how: Any) -> Any:
        x, signals = super().__call__(x, request=request, **how)
        assert isinstance(final, RMSNorm)
        seen = _seen(x, how["segments"])
        channels, energy = _channels(x, final(x), seen)
        signals |= {"final_channels": channels, "final_energy": energy, "tokens": jnp.sum(seen)}
        return final(x), signals

    def _layer(self, x: Array, own: tuple[Params, Params], **how: Any) -> tuple[Array, dict[str, Array]]:
        return _measured(nnx.merge(self.graphdef, nnx.State(own[0])), x, **how)


def _measured(
    layer: DecoderLayer,
    x: Float[Array, "B S D"],
    *,
    rotation: Rotation,
    segments: Int[Array, "B S"] | None,
    window: int | None,
    wanted: frozenset[str],
) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
    """`DecoderLayer.__call__`, its inner activations summed up."""
    seen, attention = _seen(x, segments), layer.attention
    normed = layer.attention_norm(x)
    at_attention = _channels(x, normed, seen)
    context = causal_attention(
        *attention.heads(normed, rotation),
        segments,
        window=window,
        implementation=attention.implementation,
    )
    x = x + attention.output(context)
    normed = layer.feed_forward_norm(x)
    at_feed_forward = _channels(x, normed, seen)
    inner = layer.gated(normed)
    out = layer.down.kernel[...].astype(jnp.float32)
    channels, energy = map(jnp.stack, zip(at_attention, at_feed_forward, strict=True))
    return x + layer.down(inner), {
        "heads": _added(context, attention.output.kernel[...], seen),
        "units": _total(jnp.abs(inner.astype(jnp.float32)), seen) * jnp.linalg.norm(out, axis=1),
        "channels": channels,
        "energy": energy,
    }


def _added(context: Float[Array, "B S N H"], kernel: Float[Array, "N H D"], seen: Array) -> Float[Array, " N"]:
    """Sum over tokens of the norm of what each head adds, |context · kernel|, without the [B, S, N, D] it is of."""
    kernel, context = kernel.astype(jnp.float32), context.astype(jnp.float32)
    gram = jnp.einsum("nhd,ngd->nhg", kernel, kernel)
    squares = jnp.einsum("bsnh,nhg,bsng->bsn", context, gram, context)
    return _total(jnp.sqrt(jnp.maximum(squares, 0.0)), seen)


def _channels(x: Array, normed: Array, seen: Array) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """(absolute normed values, squares over the mean square of all channels) summed over tokens."""
    squares = jnp.square(x.astype(jnp.float32))
    mean = jnp.mean(squares, axis=-1, keepdims=True)
    share = squares / jnp.where(mean > 0, mean, 1.0)
    return _total(jnp.abs(normed.astype(jnp.float32)), seen), _total(share, seen)


def _seen(x: Float[Array, "B S D"], segments: Int[Array, "B S"] | None) -> Bool[Array, "B S"]:
    """Tokens that are not padding."""
    return jnp.ones(x.shape[:2], bool) if segments is None else segments > 0


def _total(values: Float[Array, "B S C"], seen: Bool[Array, "B S"]) -> Float[Array, " C"]:
    return jnp.sum(jnp.where(seen[..., None], values, 0.0), axis=(0, 1))
