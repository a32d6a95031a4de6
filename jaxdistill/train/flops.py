"""FLOPs of a program, counted on its jaxpr: every matrix product as often as it runs, whatever the devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix products of one call; nothing is compiled, and nothing is computed.

    Args:
      function: as `jax.jit` takes it, or already transformed by `jit`, `pmap` or `shard_map`.
      args: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Raises:
      ValueError: matrix products in a `while_loop`, which runs nobody knows how often.
    """
    return jaxpr_matmul_flops(jax.make_jaxpr(function)(*args))


def jaxpr_matmul_flops(jaxpr: core.ClosedJaxpr) -> int:
    """FLOPs of the matrix products of a jaxpr, over all devices together.

    A product of [M, K] and [K, N] is 2·M·K·N; the body of a `scan` counts once a turn, that of a `shard_map` once a
    device it is spread over, that of a kernel once a cell of its grid, and of the branches of a `cond` the dearest.
    What no output depends on is left out, as the compiler leaves it out. Shapes are those before any sharding, so the
    count does not depend on how the compiler splits it. Not counted: element-wise work, reductions, gathers.

    Raises:
      ValueError: as `matmul_flops`.
    """
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _flops(used)


def _flops(jaxpr: Any) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    params = equation.params
    inner = [_flops(sub) for sub in core.jaxprs_in_params(params)]
    match equation.primitive.name:
        case "dot_general":
            return _product_flops(equation)
        case "scan":
            return params["length"] * sum(inner)
        case "cond":
            return max(inner)
        case "while":
            if any(inner):
                raise ValueError("matrix products in a while_loop: how often it runs is not known before it does")
            return 0
        case "shard_map":
            return math.prod(params["mesh"].shape[axis] for axis in _manual_axes(params)) * sum(inner)
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid) * sum(inner)
        case _:
            return sum(inner)


def _product_flops(equation: Any) -> int:
    """2 for each element of the output and each of the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _manual_axes(params: dict[str, Any]) -> Any:
    """The axes a `shard_map` splits its arrays over."""
    return params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
