"""Neighbouring batches of one shape, stacked: what goes to the device together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill.typing import Batch


def stack(batches: Sequence[Batch], size: int) -> Any:
    """Host batches of one shape as one, with arrays [size, B, ...]; rows beyond the batches given are 0."""

    def put(*leaves: np.ndarray) -> np.ndarray:
        stacked = np.zeros((size, *leaves[0].shape), leaves[0].dtype)
        for index, leaf in enumerate(leaves):
            stacked[index] = leaf
        return stacked

    return jax.tree.map(put, *batches)


def groups(batches: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Neighbours of one shape, at most so many at a time."""
    group: list[Batch] = []
    for batch in batches:
        if group and (len(group) == most or shapes(batch) != shapes(group[0])):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def shapes(batch: Batch) -> list[tuple[int, ...]]:
    """Of all its arrays."""
    return [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
