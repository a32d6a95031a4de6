"""Which mesh axes share an array's axes, by the logical names of those: the one table that lays everything out.

A batch is shared over `data` and `fsdp`; of the parameters every axis of model width is over `fsdp`, and heads,
feed-forward channels and vocabulary are over `tensor` (arXiv:1910.02054, arXiv:1909.08053). Every other axis is whole
on every device, and so is one that the devices cannot share evenly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdistill.typing import Array

LogicalAxes: TypeAlias = tuple[str | None, ...]
"""A name for each axis of an array; None for one that is whole on every device."""

Layout: TypeAlias = Literal["same", "replicated", "fsdp", "tensor"]
"""Which mesh axes parameters are shared over: all the rules name (`same`), none, or one of them alone."""

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
}
"""Logical name -> mesh axes, the first of them outermost."""

BATCH_AXES = RULES["batch"]
"""The mesh axes that share the rows of a batch."""

_LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "same": ("data", "fsdp", "tensor"),
    "replicated": (),
    "fsdp": ("fsdp",),
    "tensor": ("tensor",),
}


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh, *, layout: Layout = "same"
) -> PartitionSpec:
    """The mesh axes that share an array of this shape; those of one device are left out.

    Raises:
      ValueError: not one name for each axis.
      KeyError: a name without a rule.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axis names {tuple(axes)} for an array of shape {tuple(shape)}")
    parts: list[Any] = []
    for name, size in zip(axes, shape, strict=True):
        over: tuple[str, ...] = () if name is None else RULES[name]
        shared = tuple(axis for axis in over if axis in _LAYOUTS[layout] and mesh.shape.get(axis, 1) > 1)
        devices = math.prod(mesh.shape[axis] for axis in shared)
        divided = shared and size % devices == 0
        parts.append(None if not divided else shared[0] if len(shared) == 1 else shared)
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def named_sharding(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh, *, layout: Layout = "same"
) -> NamedSharding:
    """`partition_spec` on `mesh`."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh, layout=layout))


def mesh_in_context() -> AbstractMesh | None:
    """The mesh that a computation is being spread over; None where there is none, or inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types) else mesh


def constrain(x: Array, *axes: str | None) -> Array:
    """`x` laid out by the rules over the mesh in context; as it is without one.

    Else the compiler may follow a parameter's layout instead, and move activations where it should move weights.
    """
    mesh = mesh_in_context()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))
