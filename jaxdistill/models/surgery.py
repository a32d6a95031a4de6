"""Array surgery on parameters for warm starts: picking layers, slicing widths, factorising an embedding table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import ModelError
from jaxdistill.models.stack import stack_name
from jaxdistill.typing import Array, Float, Int, Params

_AXES: dict[str, tuple[str | None, ...]] = {
    "attention_norm.scale": ("channels",),
    "attention.query.kernel": ("channels", "query_heads", None),
    "attention.query.bias": ("query_heads", None),
    "attention.key.kernel": ("channels", "key_heads", None),
    "attention.key.bias": ("key_heads", None),
    "attention.value.kernel": ("channels", "key_heads", None),
    "attention.value.bias": ("key_heads", None),
    "attention.query_norm.scale": (None,),
    "attention.key_norm.scale": (None,),
    "attention.output.kernel": ("query_heads", None, "channels"),
    "attention.output.bias": ("channels",),
    "feed_forward_norm.scale": ("channels",),
    "gate.kernel": ("channels", "units"),
    "gate.bias": ("units",),
    "up.kernel": ("channels", "units"),
    "up.bias": ("units",),
    "down.kernel": ("units", "channels"),
    "down.bias": ("channels",),
}
"""What the axes of a decoder layer's parameters count."""


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


@dataclass(frozen=True)
class DecoderSlice:
    """The part of a decoder that is kept, by index: L_s layers, and in each of them heads and feed-forward units.

    channels: of the hidden states, the same everywhere. norm_scales: factors of the scales of each layer's attention
    and feed-forward norm, and last of the final norm.
    """

    layers: Int[np.ndarray, " L"]
    channels: Int[np.ndarray, " D"]
    key_heads: Int[np.ndarray, "L K"]
    query_heads: Int[np.ndarray, "L N"]
    units: Int[np.ndarray, "L F"]
    norm_scales: tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"], float]


def slice_decoder(params: Params, part: DecoderSlice) -> dict[str, Any]:
    """The parameters of that part of a decoder, float32; the head, if it is not tied, is sliced with the rest."""
    kept = {"channels": part.channels, "key_heads": part.key_heads, "query_heads": part.query_heads}
    kept |= {"units": part.units}

    def of_layer(path: tuple[Any, ...], leaf: Array) -> Array:
        axes = _AXES[jax.tree_util.keystr(path, simple=True, separator=".")]
        leaf = leaf[part.layers].astype(jnp.float32)
        for axis, name in enumerate(axes):
            if name == "channels":
                leaf = jnp.take(leaf, part.channels, axis=axis + 1)
            elif name is not None:
                leaf = jax.vmap(lambda one, index, axis=axis: jnp.take(one, index, axis=axis))(leaf, kept[name])
        return leaf

    layers = jax.tree_util.tree_map_with_path(of_layer, params["decoder"]["layers"])
    before_attention, before_feed_forward, final = part.norm_scales
    for name, factors in (("attention_norm", before_attention), ("feed_forward_norm", before_feed_forward)):
        layers[name] = {"scale": layers[name]["scale"] * jnp.asarray(factors, jnp.float32)[:, None]}
    sliced = {
        "embeddings": {"word": jnp.take(params["embeddings"]["word"], part.channels, axis=1).astype(jnp.float32)},
        "decoder": {"layers": layers},
        "norm": {"scale": params["norm"]["scale"][part.channels].astype(jnp.float32) * final},
    }
    if "head" in params:
        kernel = jnp.take(params["head"]["kernel"], part.channels, axis=0).astype(jnp.float32)
        sliced["head"] = {"kernel": kernel}
    return sliced


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
