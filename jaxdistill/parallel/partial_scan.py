"""A scan over as many rows as an argument says, so that one compiled program serves every number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.typing import Scalar


def scan_first(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, count: Scalar | int
) -> tuple[Any, Any]:
    """`jax.lax.scan` over the first `count` rows, a number that need not be known when this is compiled.

    Where a scan over fewer rows would be another program, this is the same one; it cannot be differentiated.

    Args:
      body: (carry, row) -> (carry, outputs).
      carry: what the first call gets.
      rows: a tree of arrays [K, ...].
      count: int32 [], 0 ≤ count ≤ K.

    Returns:
      (carry, outputs): the last carry, and the outputs of the rows [K, ...], 0 from `count` on.
    """
    body = jax.jit(body, inline=True)  # traced once for its shapes and for the loop

    def row(index: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), rows)

    def step(index: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outputs = state
        carry, new = body(carry, row(index))
        put = jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), outputs, new)
        return carry, put

    size = jax.tree.leaves(rows)[0].shape[0]
    shapes = jax.eval_shape(body, carry, row(0))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, step, (carry, zeros))
