"""A stack of layers whose parameters lie on a leading axis: running it by a scan or as a loop, taking it apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.outputs import Request
from jaxdistill.parallel.rules import constrain
from jaxdistill.parallel.target import target_device
from jaxdistill.typing import Array, Float, Params

STACKS = ("encoder", "decoder")
"""Where a network keeps its layers: parameters under [name]["layers"]."""

_LOOP_ON_CPU = 12
"""Up to so many layers, stacked parameters run as a loop on CPU: a scan copies every layer's residuals and gradients
into stacked arrays (a fifth of the step there), while more layers would only compile longer."""


REMAT = ("none", "full", "dots", "names")
_POLICIES = {
    "full": None,
    # products with batch axes are attention's, which are S × S
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("attention_output", "feed_forward_output"),
}


class Stack(nnx.Module):
    """The parameters of `count` layers, stacked on a leading axis L; `Layers` runs them."""

    def __init__(self, layer: Callable[[], nnx.Module], count: int) -> None:
        self.layers = nnx.vmap(layer, in_axes=(), out_axes=0, axis_size=count)()


@dataclass(frozen=True)
class Layers:
    """A layer's structure and the parameters of all: one tree stacked on L, or a sequence of L trees."""

    graphdef: Any
    params: Any
    count: int
    remat: str = "none"

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        request: Request,
        each: Sequence[Mapping[str, Any]] | None = None,
        scanned: Mapping[str, Any] | None = None,
        final: Callable[[Array], Array] | None = None,
        **context: Any,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        """Output of the last layer and the layers' signals, stacked.

        A layer is called with its input, `context`, its own constants in `each`, and its row of the arrays in
        `scanned`. Neighbours with the same constants that must return the same signals are one scan; nothing is kept
        of the others. `final` makes the last hidden states of the last layer's output.
        """
        how = [{**(each[layer] if each else {}), "wanted": request.at(layer)} for layer in range(self.count)]
        x = constrain(x, "batch", None, None)
        collected: dict[str, dict[int, Array]] = {"hidden_states": {0: x}}
        for layers, params in self._segments(how):
            body = self._rematerialised(partial(self._layer, **context, **how[layers[0]]), scan=len(layers) > 1)
            rows = {name: array[layers.start : layers.stop] for name, array in (scanned or {}).items()}
            if len(layers) == 1:
                x, signals = body(x, (params, {name: array[0] for name, array in rows.items()}))
                signals = {name: value[None] for name, value in signals.items()}
            else:
                x, signals = jax.lax.scan(body, x, (params, rows))
            for name, value in signals.items():
                first = layers[0] + (name == "hidden_states")
                collected.setdefault(name, {}).update({first + i: value[i] for i in range(len(layers))})
        if final is not None:
            x = collected["hidden_states"][self.count] = final(x)
        return x, {name: jnp.stack([collected[name][i] for i in chosen]) for name, chosen in request.layers}

    def _rematerialised(self, body: Callable[..., Any], *, scan: bool) -> Callable[..., Any]:
        """The layer with what `remat` does not keep computed again in the backward pass."""
        if self.remat == "none":
            return body
        # a scan's forward and backward are separate loops, which the compiler cannot merge
        return jax.checkpoint(body, policy=_POLICIES[self.remat], prevent_cse=not scan)

    def _layer(self, x: Array, own: tuple[Params, Params], **how: Any) -> tuple[Array, dict[str, Array]]:
        params, row = own
        x, signals = nnx.merge(self.graphdef, nnx.State(params))(x, **row, **how)
        return constrain(x, "batch", None, None), signals

    def _segments(self, how: list[dict[str, Any]]) -> Iterator[tuple[range, Any]]:
        """(layers, their parameters): stacked for several neighbours called the same way, plain for one."""
        if not isinstance(self.params, Mapping):
            yield from ((range(i, i + 1), params) for i, params in enumerate(self.params))
            return
        starts = [i for i in range(self.count) if i == 0 or self._loops or how[i] != how[i - 1]]
        segments = [range(start, stop) for start, stop in zip(starts, [*starts[1:], self.count], strict=True)]
        for layers, part in zip(segments, _cut(self.params, [len(layers) for layers in segments]), strict=True):
            yield (layers, jax.tree.map(lambda leaf: leaf[0], part) if len(layers) == 1 else part)

    @property
    def _loops(self) -> bool:
        return self.count <= _LOOP_ON_CPU and target_device().platform == "cpu" and self.remat == "none"


def _cut(stacked: Params, sizes: list[int]) -> list[Any]:
    """The stacked parameters cut along L; its gradient is one concatenation, not a sum of padded arrays."""
    leaves, treedef = jax.tree.flatten(stacked)
    parts = [jax.lax.split(leaf, sizes, axis=0) for leaf in leaves]
    return [treedef.unflatten([part[i] for part in parts]) for i in range(len(sizes))]


def stack_name(params: Params) -> str:
    """Which of `STACKS` the parameters have."""
    return next(name for name in STACKS if name in params)


def unstack_layers(params: Params) -> dict[str, Any]:
    """The same parameters with the layers as a tuple of L trees instead of one tree stacked on L.

    `Model.apply` takes either. Unstacked they run as a loop and need not be sliced: on CPU a teacher's forward is a
    tenth to a third faster. Everything else (checkpoints, files, surgery) wants them stacked.
    """
    name = stack_name(params)
    layers = params[name]["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    apart = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count))
    return {**params, name: {"layers": apart}}


def stack_layers(params: Params) -> dict[str, Any]:
    """The inverse of `unstack_layers`."""
    name = stack_name(params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params[name]["layers"])
    return {**params, name: {"layers": stacked}}
