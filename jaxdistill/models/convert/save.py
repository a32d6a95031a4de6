"""Writing a directory that transformers loads: config.json, model.safetensors and, if given, the tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.atomic import atomic_write_json, disk_errors, replace_directory
from jaxdistill.errors import ModelError
from jaxdistill.models.build import Model, parameter_shapes
from jaxdistill.models.config import config_to_hf
from jaxdistill.models.convert.safetensors_io import WEIGHT_FILES, write_shards
from jaxdistill.models.convert.tables import entries
from jaxdistill.typing import Params

MAX_SHARD_BYTES = 4 * 10**9


def save_pretrained(
    model: Model,
    params: Params,
    directory: str | Path,
    tokenizer: Any = None,
    *,
    factorised: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes the model as Hugging Face's own would be, complete or not at all, and returns the directory.

    A BertHash model is written as the ordinary BERT it equals (its word embedding multiplied out in float64); with
    `factorised` in its own form, which only we read back. `tokenizer` is anything with `save` or `save_pretrained`.
    Weights that fit into `max_shard_bytes` are one file, others shards with an index; host memory holds one shard and
    one leaf at a time. Files of the same names and other weights are replaced; other files in the directory stay.

    Raises:
        ModelError: the parameters are not this model's.
        ExternalError: the directory cannot be written (permissions, full disk).
    """
    directory = Path(directory)
    _check(model, params)
    tensors = _tensors(model, params, factorised=factorised)
    config = config_to_hf(model.config, task=model.task, factorised=factorised)
    with disk_errors(directory, doing="write"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=directory.parent, prefix=f".{directory.name}.", suffix=".tmp"
        ) as temporary:
            staged = Path(temporary) / "model"
            staged.mkdir()
            write_shards(tensors, staged, max_bytes=max_shard_bytes)
            atomic_write_json(staged / "config.json", config)
            if tokenizer is not None:
                (getattr(tokenizer, "save_pretrained", None) or tokenizer.save)(staged)
            _put(staged, directory)
    return directory


def to_tensors(model: Model, params: Params, *, factorised: bool = False) -> dict[str, np.ndarray]:
    """Hugging Face's tensors, by name, float32."""
    _check(model, params)
    return dict(_tensors(model, params, factorised=factorised))


def _tensors(model: Model, params: Params, *, factorised: bool) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor), one of our leaves after the other."""
    for entry in entries(model.config, model.task, factorised=factorised):
        leaf: Any = params
        for part in entry.path:
            leaf = leaf[part]
        array = _on_host(leaf)
        for name, shape, index in entry.tensors(array.shape):
            yield name, entry.to_theirs(array[index], shape)
    if model.config.model_type == "bert_hash" and not factorised:
        yield "bert.embeddings.word_embeddings.weight", fold_words(params)


def _on_host(leaf: Any) -> np.ndarray:
    """The leaf as float32 in host memory; off the CPU of a copy, since an array keeps what the host was given of it."""
    on_device = isinstance(leaf, jax.Array) and next(iter(leaf.devices())).platform != "cpu"
    return np.asarray(jnp.copy(leaf) if on_device else leaf, dtype=np.float32)


def fold_words(params: Params) -> np.ndarray:
    """BertHash's table · kernel + bias, the word embedding [V, D] it amounts to, float32."""
    table = np.asarray(params["embeddings"]["word_table"], dtype=np.float64)
    projection = params["embeddings"]["word_projection"]
    kernel, bias = (np.asarray(projection[name], dtype=np.float64) for name in ("kernel", "bias"))
    return (table @ kernel + bias).astype(np.float32)


def _check(model: Model, params: Params) -> None:
    """The tree and every shape are the model's."""
    expected = {
        jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(parameter_shapes(model))
    }
    got = {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(dict(params))}
    wrong = [
        f"{path}: {got.get(path)} (expected {expected.get(path)})"
        for path in sorted(expected.keys() | got.keys())
        if got.get(path) != expected.get(path)
    ]
    if wrong:
        raise ModelError("parameters are not this model's: " + "; ".join(wrong))


def _put(staged: Path, directory: Path) -> None:
    """The staged directory in its place: whole if that replaces nothing else, file by file beside what is not ours."""
    new = {path.name for path in staged.iterdir()}
    if not directory.exists() or {path.name for path in directory.iterdir()} <= new:
        replace_directory(staged, directory)
        return
    for path in sorted(staged.iterdir()):
        path.replace(directory / path.name)
    for pattern in WEIGHT_FILES:  # a single file beside new shards would be read in their place
        for path in directory.glob(pattern):
            if path.name not in new:
                path.unlink()
