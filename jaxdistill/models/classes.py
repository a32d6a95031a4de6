"""What a classifier's classes are called, and putting them in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdistill.typing import Params


def class_order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """The place among `theirs` of each of `ours`, or None if the names are not the same.

    Names count as the same without regard to case, unless that would make two of them one.
    """
    for fold in (str, str.casefold):
        places = {fold(name): place for place, name in enumerate(theirs)}
        names = [fold(name) for name in ours]
        if len(places) == len(theirs) == len(names) and places.keys() == set(names):
            return tuple(places[name] for name in names)
    return None


def reorder_classes(params: Params, order: Sequence[int]) -> dict[str, Any]:
    """The same parameters, the last axis of each leaf of the `classifier` in another order."""
    classifier = {name: leaf[..., np.asarray(order)] for name, leaf in params["classifier"].items()}
    return {**params, "classifier": classifier}
