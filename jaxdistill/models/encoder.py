"""The transformer layer, and running a stack of them: by a scan, or one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.attention import SelfAttention
from jaxdistill.models.config import EncoderConfig
from jaxdistill.models.dropout import Site, dropout
from jaxdistill.models.layers import Dense, LayerNorm, activation
from jaxdistill.models.outputs import Request
from jaxdistill.typing import Array, Float, Params

_LOOP_ON_CPU = 12
"""Up to so many layers, stacked parameters run as a loop on CPU: a scan copies every layer's residuals and gradients
into stacked arrays (a fifth of the step there), while more layers would only compile longer."""


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
        bias: Array,
        *,
        seeds: Array | None,
        layer: Array | int,
        wanted: frozenset[str] = frozenset(),
        first_only: bool = False,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        """The layer's output (of position 0 alone if `first_only`: Q = 1) and the signals in `wanted`."""
        config = self.config
        attended, signals = self.attention(x, bias, seeds=seeds, layer=layer, wanted=wanted, first_only=first_only)
        # DistilBERT has no dropout between its attention's output projection and the residual.
        rate = 0.0 if config.model_type == "distilbert" else config.hidden_dropout_prob
        attended = dropout(attended, seeds, rate=rate, site=Site.ATTENTION_OUTPUT, layer=layer)
        x = self.attention_norm(attended + (x[:, :1] if first_only else x))
        inner = self.output(activation(config.hidden_act)(self.intermediate(x)))
        inner = dropout(inner, seeds, rate=config.hidden_dropout_prob, site=Site.FEED_FORWARD, layer=layer)
        x = self.output_norm(inner + x)
        return x, signals | ({"hidden_states": x} if "hidden_states" in wanted else {})


class Encoder(nnx.Module):
    """The layers' parameters, stacked on a leading axis L; `Layers` runs them."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        def layer() -> EncoderLayer:
            return EncoderLayer(config, dtype=dtype)

        self.layers = nnx.vmap(layer, in_axes=(), out_axes=0, axis_size=config.num_hidden_layers)()


@dataclass(frozen=True)
class Layers:
    """A layer's structure and the parameters of all: one tree stacked on L, or a sequence of L trees."""

    graphdef: Any
    params: Any
    count: int

    def __call__(
        self, x: Float[Array, "B S D"], bias: Array, *, seeds: Array | None, request: Request, first_only: bool
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        """Output of the last layer (of position 0 alone if `first_only`) and the layers' signals, stacked.

        Neighbouring layers that must return the same signals are one scan; nothing is kept of the others.
        """
        collected: dict[str, dict[int, Array]] = {"hidden_states": {0: x}}
        for layers, params in self._segments(request, apart=first_only):
            body = partial(
                self._layer,
                bias=bias,
                seeds=seeds,
                wanted=request.at(layers[0]),
                first_only=first_only and layers[-1] == self.count - 1,
            )
            if len(layers) == 1:
                x, signals = body(x, (params, jnp.uint32(layers[0])))
                signals = {name: value[None] for name, value in signals.items()}
            else:
                x, signals = jax.lax.scan(body, x, (params, jnp.asarray(layers, jnp.uint32)))
            for name, value in signals.items():
                first = layers[0] + (name == "hidden_states")
                collected.setdefault(name, {}).update({first + i: value[i] for i in range(len(layers))})
        return x, {name: jnp.stack([collected[name][i] for i in chosen]) for name, chosen in request.layers}

    def _layer(
        self, x: Array, scanned: tuple[Params, Array], *, bias: Array, **how: Any
    ) -> tuple[Array, dict[str, Array]]:
        params, layer = scanned
        return nnx.merge(self.graphdef, nnx.State(params))(x, bias, layer=layer, **how)

    def _segments(self, request: Request, *, apart: bool) -> Iterator[tuple[range, Any]]:
        """(layers, their parameters): stacked for several, plain for one; the last layer on its own if `apart`."""
        if not isinstance(self.params, Mapping):
            yield from ((range(i, i + 1), params) for i, params in enumerate(self.params))
            return
        starts = [0]
        for layer in range(1, self.count):
            if self._loops or request.at(layer) != request.at(layer - 1) or (apart and layer == self.count - 1):
                starts.append(layer)
        segments = [range(start, stop) for start, stop in zip(starts, [*starts[1:], self.count], strict=True)]
        for layers, part in zip(segments, _cut(self.params, [len(layers) for layers in segments]), strict=True):
            yield (layers, jax.tree.map(lambda leaf: leaf[0], part) if len(layers) == 1 else part)

    @property
    def _loops(self) -> bool:
        return self.count <= _LOOP_ON_CPU and jax.default_backend() == "cpu"


def _cut(stacked: Params, sizes: list[int]) -> list[Any]:
    """The stacked parameters cut along L; its gradient is one concatenation, not a sum of padded arrays."""
    leaves, treedef = jax.tree.flatten(stacked)
    parts = [jax.lax.split(leaf, sizes, axis=0) for leaf in leaves]
    return [treedef.unflatten([part[i] for part in parts]) for i in range(len(sizes))]


def unstack_layers(params: Params) -> dict[str, Any]:
    """The same parameters with the layers as a tuple of L trees instead of one tree stacked on L.

    `Model.apply` takes either. Unstacked they run as a loop and need not be sliced: on CPU a teacher's forward is a
    tenth to a third faster. Everything else (checkpoints, files, surgery) wants them stacked.
    """
    layers = params["encoder"]["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    apart = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count))
    return {**params, "encoder": {"layers": apart}}


def stack_layers(params: Params) -> dict[str, Any]:
    """The inverse of `unstack_layers`."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["encoder"]["layers"])
    return {**params, "encoder": {"layers": stacked}}
