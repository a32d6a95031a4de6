"""What terms read: signals by name, and of those that have several layers, which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from jaxdistill.typing import Signals

Wanted: TypeAlias = tuple[tuple[str, tuple[int, ...] | None], ...]
"""Names with the layers wanted of each, as `Model.apply` counts them; None for a signal that has no layers."""

Request: TypeAlias = dict[str, tuple[int, ...] | None]
"""The same as a dictionary: what `Model.apply` takes as `outputs`."""

LOGITS: Wanted = (("logits", None),)


def union(wanted: Iterable[Wanted]) -> Request:
    """Every name once, in order of first appearance, with every layer that anybody wants of it, ascending."""
    request: Request = {}
    for name, layers in (pair for each in wanted for pair in each):
        known = request.get(name)
        request[name] = None if layers is None else tuple(sorted({*(known or ()), *layers}))
    return request


def by_layer(signals: Signals, request: Request) -> Signals:
    """The signals with stacked layers told apart: {layer: array} instead of [layers asked for, ...].

    Raises:
      ValueError: other layers came than were asked for.
    """
    apart = dict(signals)
    for name, layers in request.items():
        if layers is None:
            continue
        stacked = signals[name]
        if stacked.shape[0] != len(layers):
            raise ValueError(
                f"{name}: {len(layers)} layers were asked for ({', '.join(map(str, layers))}), "
                f"{stacked.shape[0]} came; ask the model for {{{name!r}: {list(layers)}}}"
            )
        apart[name] = {layer: stacked[index] for index, layer in enumerate(layers)}
    return apart
