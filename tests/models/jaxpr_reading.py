"""Reading what a function would compute, without compiling it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def equations(function: Any, *args: Any) -> Iterator[Any]:
    """Every equation of the traced function, those inside scans and custom rules too."""
    return _walk(jax.make_jaxpr(function)(*args).jaxpr)


def shapes(function: Any, *args: Any) -> set[tuple[int, ...]]:
    """Shapes of everything the function computes."""
    return {tuple(out.aval.shape) for equation in equations(function, *args) for out in equation.outvars}


def _walk(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _walk(inner)
