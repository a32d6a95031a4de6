"""Masked sums and means: the only places where the losses are reduced, and where devices are added up."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.inputs import check_where

AxisName: TypeAlias = Hashable | Sequence[Hashable]


def masked_sum_count(values: Float[Array, "*B"], where: Bool[Array, "*B"] | None) -> tuple[Scalar, Scalar]:
    """Sum of `values` over counted positions, and how many there are.

    Sums and counts of micro-batches, devices and hosts add up exactly to those of the whole batch; means do not.

    Args:
        values: [...] any float dtype, one value per position. Excluded entries may be NaN.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        (sum, count): float32 scalars.

    Raises:
        ValueError: `where` is not bool or not of the values' shape.
    """
    check_where(where, values.shape)
    values = values.astype(jnp.float32)
    if where is None:
        return jnp.sum(values), jnp.asarray(values.size, dtype=jnp.float32)
    # Counted in integers: a float32 running count stands still at 2**24.
    return jnp.sum(jnp.where(where, values, 0.0)), jnp.sum(where, dtype=jnp.int32).astype(jnp.float32)


def masked_mean(
    values: Float[Array, "*B"], where: Bool[Array, "*B"] | None, *, axis_name: AxisName | None = None
) -> Scalar:
    """Mean of `values` over counted positions; 0 if there are none.

    Args:
        values: [...] any float dtype, one value per position. Excluded entries may be NaN.
        where: [...] bool, True = counted; None counts every position.
        axis_name: mapped axis (or axes) of `pmap`, `shard_map` or `vmap` to add up over: every device then returns the
            mean over all devices' counted positions, however unevenly they are spread.

    Returns:
        float32 scalar.

    Raises:
        ValueError: `where` is not bool or not of the values' shape.

    Note:
        `jax.grad` *inside* `pmap` (or `shard_map` with `check_vma=False`) transposes the `psum` too: each device gets
        its own share times the number of devices, and `lax.pmean` of the gradients is the whole batch's gradient.
        Inside `shard_map` proper, the gradient of a replicated parameter is the whole batch's as it stands.
    """
    total, count = masked_sum_count(values, where)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1.0)
