"""What `Model.apply` is asked for: names, or names with the layers wanted of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from jaxdistill.errors import ModelError

OUTPUTS = ("logits", "last_hidden", "head", "hidden_states", "attentions", "attention_scores", "qkv")
PER_LAYER = ("attentions", "attention_scores", "qkv")

Outputs: TypeAlias = Iterable[str] | Mapping[str, Iterable[int] | None]


@dataclass(frozen=True)
class Request:
    """The signals asked for, and for those that have several layers, which (in the order they are returned)."""

    names: frozenset[str]
    layers: tuple[tuple[str, tuple[int, ...]], ...]

    def of(self, name: str) -> tuple[int, ...]:
        """Layers wanted of `name`; empty if it was not asked for."""
        return dict(self.layers).get(name, ())

    def at(self, layer: int) -> frozenset[str]:
        """Signals that layer (0 … L−1) must return; hidden_states there is the layer's output."""
        names = {name for name in PER_LAYER if layer in self.of(name)}
        if layer + 1 in self.of("hidden_states"):
            names.add("hidden_states")
        return frozenset(names)


def parse(outputs: Outputs, num_layers: int) -> Request:
    """Checks names and layers; negative layers count from the end, `None` means all.

    Raises:
        ModelError: an unknown name, a layer the model does not have, or no layer at all.
    """
    wanted = (
        dict(outputs)
        if isinstance(outputs, Mapping)
        else dict.fromkeys([outputs] if isinstance(outputs, str) else outputs)
    )
    unknown = sorted(set(wanted) - set(OUTPUTS))
    if unknown:
        raise ModelError(f"outputs: unknown {', '.join(unknown)}; a model gives {', '.join(OUTPUTS)}")
    layers = []
    for name, chosen in wanted.items():
        if name not in (*PER_LAYER, "hidden_states"):
            continue
        count = num_layers + (name == "hidden_states")
        indices = tuple(range(count)) if chosen is None else tuple(chosen)
        if not indices:
            raise ModelError(
                f"outputs: {name} of no layer; name some of 0 to {count - 1}, None for all, or leave it out"
            )
        bad = [i for i in indices if not -count <= i < count]
        if bad:
            raise ModelError(f"outputs: {name} of layers {bad}, but this model has {count} (0 to {count - 1})")
        layers.append((name, tuple(i % count for i in indices)))
    return Request(frozenset(wanted), tuple(layers))
