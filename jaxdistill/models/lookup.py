"""Looking tokens up in a table that may be spread over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdistill.models.layers import gather
from jaxdistill.parallel.rules import mesh_in_context, partition_spec
from jaxdistill.typing import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TableRows:
    """Some rows of a table [V, D], to be looked up in instead of it.

    Attributes:
      rows: [N, D].
      slots: int32 [V], where in `rows` each of the table's is; only those that are there may be looked up.
    """

    rows: Float[Array, "N D"]
    slots: Int[Array, " V"]

    @property
    def dtype(self) -> Any:
        """That of the rows."""
        return self.rows.dtype


def lookup(table: Float[Array, "V D"] | TableRows, ids: Int[Array, "B S"], *, dtype: Any) -> Float[Array, "B S D"]:
    """Rows of the table in `dtype`; ids out of range read the nearest row.

    Where the mesh in context spreads the table, rows travel instead of it: a device looks its neighbours' tokens up in
    its own columns and vocabulary, and each gets its own rows back. Left to itself, the compiler gathers the table.
    """
    if isinstance(table, TableRows):
        return gather(table.rows, gather(table.slots, ids)).astype(dtype)
    mesh = mesh_in_context()
    if mesh is None:
        return gather(table, ids).astype(dtype)
    batch, layout = partition_spec(("batch", None), ids.shape, mesh), partition_spec(_AXES, table.shape, mesh)
    vocabulary, columns = (*layout, None, None)[:2]
    if columns is not None and columns not in _named(batch):
        columns = None  # rows are not exchanged between devices that all have them
    if vocabulary is None and columns is None:
        return gather(table, ids).astype(dtype)

    def local(table: Array, ids: Array) -> Array:
        if columns is not None:
            ids = jax.lax.all_gather(ids, columns, axis=0, tiled=True)
        if vocabulary is None:
            rows = gather(table, ids).astype(dtype)
        else:
            own = jnp.clip(ids, 0, size - 1) - jax.lax.axis_index(vocabulary) * table.shape[0]
            here = (own >= 0) & (own < table.shape[0])
            rows = jnp.where(here[..., None], gather(table, own), 0.0).astype(dtype)
        if columns is not None:
            rows = jax.lax.all_to_all(rows, columns, split_axis=0, concat_axis=2, tiled=True)
        return rows if vocabulary is None else jax.lax.psum(rows, vocabulary)

    size = table.shape[0]
    spread = PartitionSpec(vocabulary, columns)
    return jax.shard_map(local, in_specs=(spread, batch), out_specs=PartitionSpec(*batch))(table, ids)


_AXES = ("vocab", "embed")


def _named(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes of a batch's leading axis."""
    first = spec[0] if len(spec) else None
    return first if isinstance(first, tuple) else (first,) if first is not None else ()
