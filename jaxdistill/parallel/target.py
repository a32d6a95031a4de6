"""The devices that a program is traced for: those attached, or others that it is only compiled for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh

_MESH: ContextVar[Mesh | None] = ContextVar("mesh that is traced for", default=None)


@contextmanager
def tracing_for(mesh: Mesh) -> Iterator[None]:
    """Within it, what depends on the kind of device is chosen for those of `mesh`, attached or not."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def target_device() -> Any:
    """One of the devices that a program is traced for; JAX's default one where nobody said."""
    mesh = _MESH.get()
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def target_count() -> int:
    """How many devices there may be under a program."""
    mesh = _MESH.get()
    return jax.device_count() if mesh is None else mesh.size
