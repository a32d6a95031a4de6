"""One mesh of named axes (data, fsdp, tensor) and the two placements a data-parallel step needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdistill.config.schema import ParallelConfig
from jaxdistill.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec("data")
"""How a batch is laid out: its leading axis over `data`, everything else whole on every device."""


def make_mesh(parallel: ParallelConfig | None = None, *, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run: `data` × `fsdp` × `tensor` devices, with automatic (not explicit) axis types.

    Args:
      parallel: sizes of the axes; −1 means whatever the other axes leave. Default: every device on `data`.
      devices: the devices to use; default all. A product smaller than their number uses the first ones.

    Raises:
      ConfigError: more devices asked for than there are, a number that does not divide, or a size of 0.
    """
    parallel = parallel or ParallelConfig()
    devices = list(jax.devices() if devices is None else devices)
    fixed = parallel.fsdp * parallel.tensor
    data = parallel.data
    if data == 0:
        raise ConfigError("parallel.data: 0 devices; write -1 for all that are left, or a positive number")
    if data == -1:
        if len(devices) % fixed:
            raise ConfigError(
                f"parallel: {len(devices)} devices cannot be divided by fsdp × tensor = {parallel.fsdp} × "
                f"{parallel.tensor}; choose sizes whose product divides {len(devices)}"
            )
        data = len(devices) // fixed
    if data * fixed > len(devices):
        raise ConfigError(
            f"parallel: data × fsdp × tensor = {data} × {parallel.fsdp} × {parallel.tensor} needs {data * fixed} "
            f"devices, {len(devices)} {devices[0].platform} device(s) found; write data: -1 to use what there is"
        )
    if data * fixed < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"parallel: data × fsdp × tensor = {data * fixed} leaves some of the {len(devices)} devices of "
            f"{jax.process_count()} processes without work; write data: -1"
        )
    grid = np.asarray(devices[: data * fixed]).reshape(data, parallel.fsdp, parallel.tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: leading axis over `data`."""
    return NamedSharding(mesh, BATCH)


def check_divisible(batch_size: int, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Raise unless every device gets the same number of examples in every micro-batch.

    Raises:
      ConfigError: names the three numbers and the nearest batch sizes that work.
    """
    devices = mesh.shape["data"]
    unit = devices * accumulate
    if batch_size % unit:
        below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"batch_size: {batch_size} examples cannot be divided evenly between {devices} data-parallel device(s) × "
            f"{accumulate} micro-batch(es); use a multiple of {unit}, such as {nearest}"
        )


def whole_batches(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch size not below `batch_size` that the data-parallel devices divide (for evaluation)."""
    devices = mesh.shape["data"]
    return -(-batch_size // devices) * devices


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Place a batch (any tree of arrays with a leading axis B) on `mesh`, B split over `data`.

    Raises:
      ConfigError: B is not a multiple of the number of data-parallel devices.
    """
    check_divisible(int(np.shape(jax.tree.leaves(batch)[0])[0]), mesh)
    return jax.device_put(batch, batch_sharding(mesh))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Place a tree whole on every device of `mesh` (no copy of what is already there)."""
    return jax.device_put(tree, replicated(mesh))
