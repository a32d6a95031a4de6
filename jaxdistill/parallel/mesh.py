"""One mesh of named axes (data, fsdp, tensor), and how batches and replicated trees are placed on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdistill.config.schema import ParallelConfig
from jaxdistill.errors import ConfigError
from jaxdistill.parallel.rules import BATCH_AXES, partition_spec

AXES = ("data", "fsdp", "tensor")


def make_mesh(parallel: ParallelConfig | None = None, *, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run: `data` × `fsdp` × `tensor` devices, with automatic (not explicit) axis types.

    Neighbours on `tensor`, which talk most, are neighbours among the devices.

    Args:
      parallel: sizes of the axes; −1, once, means whatever the other axes leave. Default: every device on `data`.
      devices: the devices to use; default all. A product smaller than their number uses the first ones.

    Raises:
      ConfigError: more devices asked for than there are, a number that does not divide, a size of 0, more than one
        −1, or `pmap` with an axis other than `data`.
    """
    parallel = parallel or ParallelConfig()
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes({axis: getattr(parallel, axis) for axis in AXES}, devices)
    if parallel.strategy == "pmap":
        check_pmap(sizes)
    used = math.prod(sizes.values())
    if used < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"parallel: data × fsdp × tensor = {used} leaves some of the {len(devices)} devices of "
            f"{jax.process_count()} processes without work; write data: -1"
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=axis_types, devices=devices[:used])
    except NotImplementedError:  # a torus whose sides have to be split between axes, such as 64 × 64 of 16 × 16 × 16
        split = create_device_mesh(tuple(sizes.values()), devices[:used], allow_split_physical_axes=True)
        return Mesh(split, AXES, axis_types=axis_types)


def _sizes(asked: dict[str, int], devices: Sequence[Any]) -> dict[str, int]:
    """The axes' sizes, with what −1 stands for."""
    for axis, size in asked.items():
        if size == 0 or size < -1:
            raise ConfigError(f"parallel.{axis}: {size} devices; write -1 for all that are left, or a positive number")
    free = [axis for axis, size in asked.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(
            f"parallel: {' and '.join(free)} are -1 at the same time; one axis alone can take what the others leave"
        )
    fixed = math.prod(size for size in asked.values() if size != -1)
    if not free:
        if fixed > len(devices):
            raise ConfigError(
                f"parallel: data × fsdp × tensor = {' × '.join(map(str, asked.values()))} needs {fixed} devices, "
                f"{len(devices)} {devices[0].platform} device(s) found; write data: -1 to use what there is"
            )
        return asked
    if len(devices) % fixed:
        others = {axis: size for axis, size in asked.items() if size != -1}
        raise ConfigError(
            f"parallel: {len(devices)} devices cannot be divided by {' × '.join(others)} = "
            f"{' × '.join(map(str, others.values()))}; choose sizes whose product divides {len(devices)}"
        )
    return {axis: len(devices) // fixed if size == -1 else size for axis, size in asked.items()}


def check_pmap(sizes: Any) -> None:
    """Raise unless a mesh of these sizes is one that `pmap` can use.

    Raises:
      ConfigError: an axis other than `data` has several devices, or there are several processes.
    """
    if sizes["fsdp"] * sizes["tensor"] > 1:
        raise ConfigError(
            f"parallel.strategy: pmap splits batches only, but fsdp × tensor = {sizes['fsdp']} × {sizes['tensor']}; "
            "write strategy: jit, or set both to 1"
        )
    if jax.process_count() > 1:
        raise ConfigError("parallel.strategy: pmap runs in one process; write strategy: jit for several")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: leading axis over `data` and `fsdp`, everything else whole on every device."""
    return NamedSharding(mesh, partition_spec(("batch",), (batch_devices(mesh),), mesh))


def stacked_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of several batches stacked on a leading axis."""
    return NamedSharding(mesh, partition_spec((None, "batch"), (1, batch_devices(mesh)), mesh))


def batch_devices(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_divisible(batch_size: int, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Raise unless every device gets the same number of examples in every micro-batch.

    Raises:
      ConfigError: names the three numbers and the nearest batch sizes that work.
    """
    devices = batch_devices(mesh)
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
    devices = batch_devices(mesh)
    return -(-batch_size // devices) * devices


def host_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process gives part `index` of every batch's `count` equal parts.

    Processes whose devices hold the same rows (`tensor` across hosts) share an index. A part's rows need not be
    neighbours: on a torus, neighbours on the mesh are often chips of different hosts.

    Raises:
      ConfigError: two processes' devices hold some of their rows together, and others not.
    """
    parts = batch_devices(mesh)
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((parts,)).items():
        held.setdefault(device.process_index, set()).update(range(parts)[rows])
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(rows) for rows in shares}) > 1 or sum(map(len, shares)) != parts:
        raise ConfigError(
            "parallel: the processes' devices cannot read equal parts of a batch on this mesh; choose sizes of fsdp "
            f"and tensor that divide, or are multiples of, the {len(mesh.local_devices)} devices of a process"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Place a batch (any tree of arrays with a leading axis B) on `mesh`, B split over `data` and `fsdp`.

    With several processes each gives its own rows, its part (`host_share`) of B. What is on the mesh already passes
    through.

    Raises:
      ConfigError: B is not a multiple of the number of data-parallel devices.
    """
    return _put(batch, batch_sharding(mesh), mesh, axis=0)


def put_batches(batches: Any, mesh: Mesh) -> Any:
    """`put_batch` of several batches stacked on a leading axis, which every device has whole."""
    return _put(batches, stacked_sharding(mesh), mesh, axis=1)


def _put(batch: Any, sharding: NamedSharding, mesh: Mesh, *, axis: int) -> Any:
    leaves = jax.tree.leaves(batch)
    if jax.process_count() == 1 or getattr(leaves[0], "sharding", None) == sharding:
        check_divisible(int(np.shape(leaves[0])[axis]), mesh)
        return jax.device_put(batch, sharding)
    check_divisible(int(np.shape(leaves[0])[axis]) * host_share(mesh)[1], mesh)
    return jax.make_array_from_process_local_data(sharding, jax.tree.map(np.asarray, batch))


def place(tree: Any, shardings: Any) -> Any:
    """Place a tree, the same in every process, by a sharding or a tree of them (or a prefix of it).

    Nothing is copied that is there already, and nothing passes between processes.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_place_leaf, tree, jax.tree.broadcast(shardings, tree))


def host_memory() -> AbstractContextManager[Any]:
    """A context in which arrays that are put nowhere else stay in host memory (where JAX has its CPU backend)."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return nullcontext()


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Place a tree whole on every device of `mesh` (no copy of what is already there)."""
    return place(tree, replicated(mesh))


def _place_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """One leaf in this process's part of the mesh; a random key as its data."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place_leaf(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
