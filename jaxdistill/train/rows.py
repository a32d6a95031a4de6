"""A word table's gradient as the rows that a batch reads, instead of the whole table's with zeros everywhere else.

A batch has some hundred of a table's tens of thousands of rows. Written out as large as the table, its gradient is
filled with zeros, added to, squared for the norm and read by both moments: most of a small student's update. Here the
model is given the batch's rows in the table's place and differentiated by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.models.lookup import TableRows
from jaxdistill.typing import Array, Float, Int

_PER_ID = 64  # entries of a table that cost as much as finding a token's row among the batch's
_SHARE = 2  # rows of a table for each of the batch's tokens, at least


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowGradient:
    """The gradient of a table [V, D], zero but for some rows.

    Attributes:
      rows: [N, D].
      places: int32 [N], which of the table's each is, all different; V and above: none, and the row is zero.
    """

    rows: Float[Array, "N D"]
    places: Int[Array, " N"]

    def add_to(self, table: Float[Array, "V D"], rows: Float[Array, "N D"]) -> Float[Array, "V D"]:
        """The table with `rows` added at this gradient's places."""
        return table.at[self.places].add(rows.astype(table.dtype), mode="drop", unique_indices=True)


@dataclass(frozen=True)
class BatchRows:
    """The rows of a word table that a batch reads. Slot i is the row of the batch's token i where it has it first.

    path: of the table in what is trained. places: of each slot, as `RowGradient's`. slots: int32 [V], of each row.
    """

    path: tuple[str, ...]
    places: Int[Array, " N"]
    slots: Int[Array, " V"]

    @classmethod
    def of(cls, path: tuple[str, ...], table: Float[Array, "V D"], ids: Int[Array, "B S"]) -> BatchRows | None:
        """Those of the ids (one out of range reads the nearest row); None where the whole table would cost no more."""
        height, count = table.shape[0], ids.size
        if height < _SHARE * count or table.size < _PER_ID * count:
            return None
        flat, order = jnp.clip(ids.reshape(-1), 0, height - 1), jnp.arange(count, dtype=jnp.int32)
        slots = jnp.full(height, count, jnp.int32).at[flat].min(order)
        return cls(path, jnp.where(slots[flat] == order, flat, height + order), slots)

    def taken(self, trained: Any) -> Any:
        """What is trained, with the slots' rows [N, D] in the table's place: what is differentiated by."""
        return _replaced(trained, self.path, lambda table: jnp.take(table, self.places, axis=0, mode="clip"))

    def looked_up(self, taken: Any) -> Any:
        """`taken` as the model reads it."""
        return _replaced(taken, self.path, lambda rows: TableRows(rows, self.slots))

    def gradient(self, gradients: Any) -> Any:
        """The gradient of `taken` as that of what is trained."""
        return _replaced(gradients, self.path, lambda rows: RowGradient(rows, self.places))


def _replaced(tree: Any, path: tuple[str, ...], change: Any) -> Any:
    """The nested dictionary with the leaf at the path changed."""
    if not path:
        return change(tree)
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], change)}
