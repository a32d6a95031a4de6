"""Drawing fresh parameters: each leaf depends on the key and its own path alone, and one compiled generator draws all.

A generator per leaf would be right too, but each costs a quarter of a second to compile and a network has a dozen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdistill.typing import Array, PRNGKeyArray

Path = tuple[str, ...]

_BLOCK = 1024
_AT_ONCE = 1024


def weight(shape: tuple[int, ...], *, stddev: float) -> nnx.Param:
    """A parameter to be drawn from a normal distribution of mean 0 and this standard deviation."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), stddev=stddev, start=0.0)


def constant(shape: tuple[int, ...], value: float) -> nnx.Param:
    """A parameter that starts at `value` everywhere."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), stddev=0.0, start=value)


def declared(network: nnx.Module) -> dict[Path, nnx.Param]:
    """The parameters of a network (an abstract one will do), by path."""
    return {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param))}


def draw(key: PRNGKeyArray, leaves: Mapping[Path, nnx.Param]) -> dict[str, Any]:
    """Fresh float32 values of the declared parameters, as a nested dictionary."""
    random = {path: leaf for path, leaf in leaves.items() if leaf.stddev}
    blocks = {path: math.ceil(math.prod(leaf.shape) / _BLOCK) for path, leaf in random.items()}
    values = _normal_blocks(key, blocks) if blocks else jnp.zeros((0, _BLOCK))
    tree: dict[str, Any] = {}
    first = 0
    for path, leaf in leaves.items():
        if path in random:
            flat = values[first : first + blocks[path]].reshape(-1)[: math.prod(leaf.shape)]
            value, first = flat.reshape(leaf.shape) * leaf.stddev, first + blocks[path]
        else:
            value = jnp.full(leaf.shape, leaf.start, jnp.float32)
        put(tree, path, value)
    return tree


def put(tree: dict[str, Any], path: Path, leaf: Any) -> None:
    """Sets tree[path[0]][path[1]]…, making the dictionaries on the way."""
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = leaf


def take(tree: Mapping[str, Any], path: Path) -> Any:
    """tree[path[0]][path[1]]…"""
    for part in path:
        tree = tree[part]
    return tree


def _normal_blocks(key: PRNGKeyArray, blocks: Mapping[Path, int]) -> Array:
    """Normal values [sum of blocks, _BLOCK]: block b of a path comes from the key, a hash of the path, and b."""
    names = np.repeat(np.array([zlib.crc32("/".join(path).encode()) for path in blocks], np.uint32), [*blocks.values()])
    numbers = np.concatenate([np.arange(count, dtype=np.uint32) for count in blocks.values()])

    def block(position: tuple[Array, Array]) -> Array:
        name, number = position
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, name), number), (_BLOCK,), jnp.float32)

    # a few at a time: the bits and what becomes of them on the way to a normal value take four times its memory
    return jax.lax.map(block, (jnp.asarray(names), jnp.asarray(numbers)), batch_size=_AT_ONCE)
