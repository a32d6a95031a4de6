"""Along which axes of an enclosing `shard_map` arrays may differ, where a custom derivative must know it."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array


def equally_varying(tree: Any) -> Any:
    """All arrays varying along the same axes: JAX then adds up the gradients of those that did not."""
    return _vary(frozenset().union(*map(_varying_axes, jax.tree.leaves(tree))), tree)


def varying_like(array: Array, tree: Any) -> Any:
    """Constants varying as `array` does: what a scan over it may carry."""
    return _vary(_varying_axes(array), tree)


def _vary(axes: frozenset[Any], tree: Any) -> Any:
    def vary(array: Array) -> Array:
        missing = tuple(sorted(axes - _varying_axes(array), key=str))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(vary, tree)


def _varying_axes(array: Array) -> frozenset[Any]:
    kind = jax.typeof(array)  # JAX 0.10 has renamed the attribute
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying
