"""Compile once: programs are kept on disk between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


def use_compilation_cache(directory: Path) -> None:
    """Keep compiled programs in `directory`, unless the user's own JAX settings name another place (or switch it off).

    A second start of the same run, a resume, and the repeats of a stage then read their programs instead of compiling
    them. What is in the cache depends on the program, the compiler and the device, so nothing stale is ever used.
    """
    settings: Any = jax.config  # its flags are made at run time, unknown to type checkers
    if settings.jax_compilation_cache_dir is None and settings.jax_enable_compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
