"""Array surgery on parameters for warm starts: picking layers, and factorising an embedding table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill.errors import ModelError
from jaxdistill.models.stack import stack_name
from jaxdistill.typing import Array, Float, Params


def select_layers(params: Params, indices: Sequence[int]) -> dict[str, Any]:
    """The stacked layers of `params` at `indices`, in that order, as a new stacked tree.

    Raises:
        ModelError: an index the model does not have.
    """
    layers = params[stack_name(params)]["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    bad = [i for i in indices if not 0 <= i < count]
    if bad or not indices:
        raise ModelError(f"layers {list(indices)}: this model has layers 0 to {count - 1}")
    chosen = np.asarray(indices)
    return jax.tree.map(lambda leaf: leaf[chosen], layers)


def svd_factorise(
    table: Float[Array, "V D"], width: int
) -> tuple[Float[np.ndarray, "V P"], Float[np.ndarray, "P D"], Float[np.ndarray, " D"]]:
    """The best rank-P approximation of a centred table: table ≈ left · right + mean.

    left has columns of unit standard deviation (over the vocabulary), right carries the scale; float32, computed in
    float64 from the D × D covariance, so that the cost is V·D² once.

    Raises:
        ModelError: width is not between 1 and D.
    """
    exact = np.asarray(table, dtype=np.float64)
    if not 1 <= width <= exact.shape[1]:
        raise ModelError(f"width {width}: a table of width {exact.shape[1]} factorises into 1 to {exact.shape[1]}")
    mean = exact.mean(axis=0)
    centred = exact - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    directions = directions[:, ::-1][:, :width]
    deviations = np.sqrt(np.maximum(variances[::-1][:width], np.finfo(np.float64).tiny))
    left = centred @ directions / deviations
    right = (directions * deviations).T
    return left.astype(np.float32), right.astype(np.float32), mean.astype(np.float32)
