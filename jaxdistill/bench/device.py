"""What the devices at hand can do at best: the rate of a large matrix product."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.typing import Array

_SIZES = {"cpu": 1024}
_SIZE = 8192
_TRIES = 3


class MatmulPeak:
    """The rate at which all devices of a mesh together multiply large square matrices of a dtype."""

    def __init__(self, mesh: Mesh, dtype: jnp.dtype) -> None:
        self.size = _SIZES.get(mesh.devices.flat[0].platform, _SIZE)
        self.best = 0.0
        self._devices = mesh.size
        each = PartitionSpec(mesh.axis_names)
        # a product of its own on every device, whatever the mesh
        multiply = jax.shard_map(lambda x: (x[0] @ x[0])[None], mesh=mesh, in_specs=each, out_specs=each)
        self._multiply = jax.jit(multiply)
        shape = (mesh.size, self.size, self.size)
        self._matrices: Array = jax.jit(
            lambda: jnp.full(shape, 1 / self.size, dtype), out_shardings=NamedSharding(mesh, each)
        )()
        jax.block_until_ready(self._multiply(self._matrices))

    def measure(self) -> float:
        """FLOP/s of the fastest product so far, those of this call included."""
        for _ in range(_TRIES):
            begin = time.perf_counter()
            jax.block_until_ready(self._multiply(self._matrices))
            seconds = time.perf_counter() - begin
            self.best = max(self.best, 2 * self._devices * self.size**3 / seconds)
        return self.best


def device_peak_bytes() -> int | None:
    """The most memory that one device has held so far; None where it does not say (CPUs)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found), default=None)
