"""A checkpoint's arrays, by dotted path: how they are copied, described, compared, written and read by Orbax."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_OVERHEAD = 1 << 20  # Orbax's and our own metadata, generously


def flatten(state: Any) -> dict[str, Any]:
    """Dotted path -> leaf, in the tree's own order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def as_data(leaf: Any) -> Any:
    """The array as Orbax writes it: a random key as its key data, anything else as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def own_copy(leaf: Any) -> np.ndarray:
    """`as_data` in NumPy, which nobody else can change or donate."""
    return np.array(as_data(leaf), copy=True)  # np.asarray of a CPU array is a view of the very buffer the step reuses


def describe(leaf: Any) -> str:
    """`float32[30522,384]`; keys carry their implementation: `key<fry>[]`."""
    return f"{leaf.dtype}[{','.join(str(size) for size in leaf.shape)}]"


def described_params(leaves: dict[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters among described leaves, as the shapes `read` wants."""
    return {path: _parse(description) for path, description in leaves.items() if _is_param(path)}


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """One line for each described leaf that is missing, unexpected or of another shape or dtype."""
    lines = []
    for path in sorted({*found, *expected}):
        if path not in expected:
            lines.append(f"{path} {found[path]} is not in this model")
        elif path not in found:
            lines.append(f"{path} {expected[path]} is not in the checkpoint")
        elif found[path] != expected[path]:
            lines.append(f"{path} is {found[path]} in the checkpoint, {expected[path]} in this model")
    return lines


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with shardings: one for all, or a tree like it, or a prefix of such a tree.

    Raises:
      ValueError: the trees do not fit.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        jax.tree.broadcast(shardings, shapes),
    )


def check_room(directory: Path, copies: dict[str, Any]) -> None:
    """To be asked before `write`: halfway, Orbax's threads would fill the terminal with tracebacks before their error.

    Raises:
      OSError: there is no room for the arrays beside `directory`.
    """
    needed = sum(copy.nbytes for copy in copies.values()) + _OVERHEAD
    if shutil.disk_usage(directory.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def write(directory: Path, copies: dict[str, Any]) -> None:
    """Write leaves (`as_data`) into `directory`, which must not exist; returns when they are on the disk."""
    with _orbax() as checkpointer:
        checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(_nest(copies)))


def read(directory: Path, wanted: dict[str, Any], *, alone: bool = False) -> dict[str, jax.Array]:
    """Read some leaves of what `write` wrote.

    Args:
      directory: the checkpoint.
      wanted: dotted path -> array or `jax.ShapeDtypeStruct` of the leaf's own shape and dtype. With a sharding it
        is placed there; without one it comes back uncommitted, on the default device.
      alone: this process reads by itself, and the job's others need not.
    """
    raw = {path: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for path, leaf in wanted.items()}
    item = _nest({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in raw.items()})
    placement = {path: _restore_args(leaf, _sharding(wanted[path])) for path, leaf in raw.items()}
    arguments = ocp.args.PyTreeRestore(item, restore_args=_nest(placement), partial_restore=True)
    with _orbax(alone=alone) as checkpointer:
        tree = checkpointer.restore(directory.absolute(), args=arguments)
    leaves = {**flatten({"params": tree["params"]}), **tree.get("state", {})}
    return {path: _placed(leaves[path], like=leaf) for path, leaf in wanted.items()}


def nested_params(leaves: dict[str, Any]) -> dict[str, Any]:
    """The nested dict below `params`."""
    return _nest({path: leaf for path, leaf in leaves.items() if _is_param(path)})["params"]


@contextmanager
def _orbax(*, alone: bool = False) -> Iterator[ocp.Checkpointer]:
    """Orbax without compression (trained weights shrink by 7 % for five times the processor time), and silent.

    What it logs when it fails is in the exception as well. `alone`: it does not wait for the job's other processes.
    """
    logger = logging.getLogger("absl")
    logger.addFilter(_not_from_orbax)
    processes = ocp.options.MultiprocessingOptions()
    if alone:
        me = jax.process_index()
        processes = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
        )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True, multiprocessing_options=processes)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=processes) as checkpointer:
            yield checkpointer
    finally:
        logger.removeFilter(_not_from_orbax)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """What Orbax is given: the parameters as the nested dict they are, the rest flat, under "state"."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        parts = path.split(".") if _is_param(path) else ["state", path]
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = leaf
    return tree


def _is_param(path: str) -> bool:
    return path.startswith("params.")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _parse(description: str) -> jax.ShapeDtypeStruct:
    """The inverse of `describe` (not for keys)."""
    dtype, _, sizes = description.removesuffix("]").partition("[")
    return jax.ShapeDtypeStruct(tuple(int(size) for size in sizes.split(",") if size), jnp.dtype(dtype))


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    return getattr(leaf, "sharding", None)


def _restore_args(leaf: Any, sharding: jax.sharding.Sharding | None) -> ocp.RestoreArgs:
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _placed(value: Any, *, like: Any) -> jax.Array:
    """What Orbax read as the array that was asked for: key data as keys, NumPy as a JAX array of its own."""
    sharding = _sharding(like)
    if sharding is None:
        value = jnp.array(value)
    if not _is_key(like):
        return value
    key = jax.random.wrap_key_data(value, impl=_key_impl(like))
    return key if sharding is None else jax.device_put(key, sharding)


def _key_impl(leaf: Any) -> Any:
    """`jax.random.key_impl`, which does not take shapes, of a key or of the shape of one."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]
