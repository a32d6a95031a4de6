"""How programs are compiled: kept on disk between processes, and with what options."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh


def use_compilation_cache(directory: Path) -> None:
    """Keep compiled programs in `directory`, unless the user's own JAX settings name another place (or switch it off).

    A second start of the same run, a resume, and the repeats of a stage then read their programs instead of compiling
    them. What is in the cache depends on the program, the compiler and the device, so nothing stale is ever used.
    """
    settings: Any = jax.config  # its flags are made at run time, unknown to type checkers
    if settings.jax_compilation_cache_dir is None and settings.jax_enable_compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """XLA's options for a training step on the devices of `mesh`.

    On TPUs a product with a weight that is spread over devices would be computed part by part while the parts travel
    around a ring. As compiled it moves (n + 1)/(n − 1) as much as gathering the weight does: two thirds more on four
    devices, and a gather is overlapped with computing all the same.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@contextmanager
def empty_compilation_cache() -> Iterator[None]:
    """Keep compiled programs in a directory of their own, empty at first and gone afterwards, and all of them.

    What this process has compiled before is forgotten; `jax.clear_caches()` inside lets a program be read from the
    directory afterwards, as in a second process.
    """
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="jaxdistill-") as directory:
        try:
            _use_cache(dict(zip(names, (directory, True, 0.0, -1), strict=True)))
            jax.clear_caches()
            yield
        finally:
            _use_cache(before)


def _use_cache(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it opens its directory once
