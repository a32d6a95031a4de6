"""Logical axes of every parameter of the encoders and decoders, and where they put it on a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.errors import ConfigError
from jaxdistill.models.build import Model, structure
from jaxdistill.models.config import EncoderConfig
from jaxdistill.models.init import Path, put
from jaxdistill.models.llama_config import LlamaConfig
from jaxdistill.models.quantised import shardings_like
from jaxdistill.parallel.rules import Layout, LogicalAxes, named_sharding
from jaxdistill.typing import Params

_AXES: dict[str, LogicalAxes] = {
    # tables
    "embeddings.word": ("vocab", "embed"),
    "embeddings.word_table": ("vocab", None),
    "embeddings.word_projection.kernel": (None, "embed"),
    "embeddings.position": (None, None),
    "embeddings.token_type": (None, None),
    # attention
    "attention.query.kernel": ("embed", "heads", None),
    "attention.query.bias": ("heads", None),
    "attention.key.kernel": ("embed", "kv_heads", None),
    "attention.key.bias": ("kv_heads", None),
    "attention.value.kernel": ("embed", "kv_heads", None),
    "attention.value.bias": ("kv_heads", None),
    "attention.qkv.kernel": ("embed", None, "heads", None),
    "attention.qkv.bias": (None, "heads", None),
    "attention.output.kernel": ("heads", None, "embed"),
    # feed-forward: a decoder's, an encoder's
    "layers.gate.kernel": ("embed", "mlp"),
    "layers.gate.bias": ("mlp",),
    "layers.up.kernel": ("embed", "mlp"),
    "layers.up.bias": ("mlp",),
    "layers.down.kernel": ("mlp", "embed"),
    "layers.intermediate.kernel": ("embed", "mlp"),
    "layers.intermediate.bias": ("mlp",),
    "layers.output.kernel": ("mlp", "embed"),
    # heads
    "head.kernel": ("embed", "vocab"),
    "pooler.kernel": ("embed", None),
    "classifier.kernel": ("embed", None),
    "qa_outputs.kernel": ("embed", None),
    "transform.kernel": ("embed", None),
    "decoder_bias": ("vocab",),
}
"""By the end of a parameter's path, layers' own leading axis left out.

Positions and token types are too small to be worth an exchange. What is not here is a vector, and whole: norms, and the
biases of what is added to the hidden states."""


def logical_axes(model: Model) -> dict[str, Any]:
    """The tree `model.init` returns, with a tuple of logical names, one an axis, for each parameter."""
    tree: dict[str, Any] = {}
    for path, parameter in structure(model).parameters.items():
        put(tree, path, _axes(path, len(parameter.shape)))
    return tree


def param_shardings(model: Model, mesh: Mesh, layout: Layout = "same", *, like: Params | None = None) -> dict[str, Any]:
    """A tree of `NamedSharding`s on `mesh` for the model's parameters.

    Args:
        model: whose parameters.
        mesh: of `parallel.make_mesh`.
        layout: `same` as the rules say; `replicated`: whole on every device; `fsdp` or `tensor`: over that axis alone.
        like: parameters, or shapes, of the model; the shardings of layers are apart where these are (see
            `unstack_layers`). None: stacked, as `model.init` returns them.

    Raises:
        ConfigError: the `tensor` devices cannot share the model's heads evenly.
    """
    check_mesh(model, mesh, layout)
    parts = structure(model)
    tree: dict[str, Any] = {}
    for path, parameter in parts.parameters.items():
        axes = _axes(path, len(parameter.shape))
        put(tree, path, named_sharding(axes, parameter.shape, mesh, layout=layout))
    if like is None:
        return tree
    if isinstance(like[parts.stack]["layers"], Mapping):
        return shardings_like(like, tree)
    layer = jax.tree.map(lambda whole: NamedSharding(mesh, PartitionSpec(*whole.spec[1:])), tree[parts.stack]["layers"])
    apart = {**tree, parts.stack: {"layers": tuple(layer for _ in like[parts.stack]["layers"])}}
    return shardings_like(like, apart)


def check_mesh(model: Model, mesh: Mesh, layout: Layout = "same") -> None:
    """Raise unless the `tensor` devices can share the model's attention heads, if in this layout they must.

    Key/value heads are shared too where they divide. Where there are fewer of them than devices, every device has all:
    then the devices must be a multiple of them, so that the queries of each read one only.

    Raises:
        ConfigError: names the number of heads, and sizes of `tensor` that work.
    """
    devices = mesh.shape.get("tensor", 1) if layout in ("same", "tensor") else 1
    config = model.config
    heads = config.num_attention_heads
    shared = config.num_key_value_heads if isinstance(config, LlamaConfig) else heads

    def fits(devices: int) -> bool:
        return heads % devices == 0 and (shared % devices == 0 or devices % shared == 0)

    if fits(devices):
        return
    named = f"num_attention_heads {heads}"
    if not isinstance(config, EncoderConfig):
        named += f", num_key_value_heads {shared}"
    choices = ", ".join(str(size) for size in range(1, heads + 1) if fits(size))
    raise ConfigError(
        f"parallel.tensor: {devices} devices cannot share the attention heads of a {config.model_type} with {named}; "
        f"use one of {choices}"
    )


def _axes(path: Path, rank: int) -> LogicalAxes:
    """The names of a parameter's axes, the stacked layers' included."""
    stacked = "layers" in path
    for start in range(len(path)):
        if (axes := _AXES.get(".".join(path[start:]))) is not None:
            return ("layers", *axes) if stacked else axes
    assert rank == 1 + stacked, f"{'.'.join(path)}: a parameter without logical axes"
    return ("layers", None) if stacked else (None,)
