"""What the tests of model directories do with one they wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file


def rewrite(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the saved tensors by `change` of them."""
    path = directory / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


def same(params: Any, other: Any) -> None:
    """Assert that two trees hold the same numbers."""
    assert jax.tree.structure(params) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, params, other)
