"""FLOPs of a program, counted on its jaxpr: every matrix product as often as it runs, whatever the devices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Product:
    """A matrix product: shapes and dtypes of both operands, `dot_general`'s dimension numbers, dtype of the result."""

    left: tuple[tuple[int, ...], Any]
    right: tuple[tuple[int, ...], Any]
    dimension_numbers: Any
    result: Any

    @property
    def flops(self) -> int:
        """2 for each pair of elements that is multiplied: 2·M·K·N of [M, K] and [K, N]."""
        (_, contracted), (_, together) = self.dimension_numbers
        shape = self.right[0]
        rest = math.prod(size for axis, size in enumerate(shape) if axis not in {*contracted, *together})
        return 2 * math.prod(self.left[0]) * rest


def jaxpr_matmul_flops(jaxpr: core.ClosedJaxpr) -> int:
    """FLOPs of the matrix products of a jaxpr, over all devices together: of every one of `matmuls`.

    Raises:
      ValueError: as `matmul_flops`.
    """
    return _flops(matmuls(jaxpr))


def matmuls(jaxpr: core.ClosedJaxpr) -> Counter[Product]:
    """The matrix products of a jaxpr, and how often each is computed, over all devices together.

    The body of a `scan` counts once a turn, that of a `shard_map` once a device it is spread over, that of a kernel
    once a cell of its grid, and of the branches of a `cond` the dearest. What no output depends on is left out, as the
    compiler leaves it out. Shapes are those before any sharding, so the count does not depend on how the compiler
    splits it. Not counted: element-wise work, reductions, gathers.

    Raises:
      ValueError: as `matmul_flops`.
    """
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _within(used)


def _flops(products: Counter[Product]) -> int:
    return sum(product.flops * times for product, times in products.items())


def _within(jaxpr: Any) -> Counter[Product]:
    return sum(map(_computed_by, jaxpr.eqns), Counter())


def _computed_by(equation: Any) -> Counter[Product]:
    params = equation.params
    inner = [_within(sub) for sub in core.jaxprs_in_params(params)]
    every = sum(inner, Counter())
    match equation.primitive.name:
        case "dot_general":
            left, right = ((each.aval.shape, each.aval.dtype) for each in equation.invars)
            return Counter([Product(left, right, params["dimension_numbers"], equation.outvars[0].aval.dtype)])
        case "scan":
            return _times(every, params["length"])
        case "cond":
            return max(inner, key=_flops)
        case "while":
            if every:
                raise ValueError("matrix products in a while_loop: how often it runs is not known before it does")
            return every
        case "shard_map":
            return _times(every, math.prod(params["mesh"].shape[axis] for axis in _manual_axes(params)))
        case "pallas_call":
            return _times(every, math.prod(params["grid_mapping"].grid))
        case _:
            return every


def _times(products: Counter[Product], times: int) -> Counter[Product]:
    return Counter({product: times * count for product, count in products.items()})


def _manual_axes(params: dict[str, Any]) -> Any:
    """The axes a `shard_map` splits its arrays over."""
    return params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
