"""Writing a directory that transformers loads: config.json, model.safetensors and, if given, the tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.atomic import atomic_write_json, disk_errors, replace_directory
from jaxdistill.errors import ModelError
from jaxdistill.models.build import Model, parameter_shapes
from jaxdistill.models.config import config_to_hf
from jaxdistill.models.convert.safetensors_io import write_tensors
from jaxdistill.models.convert.tables import entries
from jaxdistill.typing import Params


def save_pretrained(
    model: Model, params: Params, directory: str | Path, tokenizer: Any = None, *, factorised: bool = False
) -> Path:
    """Writes the model as Hugging Face's own would be, complete or not at all, and returns the directory.

    A BertHash model is written as the ordinary BERT it equals (its word embedding multiplied out in float64); with
    `factorised` in its own form, which only we read back. `tokenizer` is anything with `save` or `save_pretrained`.
    Files of the same names are replaced; other files in the directory stay.

    Raises:
        ModelError: the parameters are not this model's.
        ExternalError: the directory cannot be written (permissions, full disk).
    """
    directory = Path(directory)
    tensors = to_tensors(model, params, factorised=factorised)
    config = config_to_hf(model.config, task=model.task, factorised=factorised)
    with disk_errors(directory, doing="write"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=directory.parent, prefix=f".{directory.name}.", suffix=".tmp"
        ) as temporary:
            staged = Path(temporary) / "model"
            staged.mkdir()
            write_tensors(tensors, staged)
            atomic_write_json(staged / "config.json", config)
            if tokenizer is not None:
                (getattr(tokenizer, "save_pretrained", None) or tokenizer.save)(staged)
            _put(staged, directory)
    return directory


def to_tensors(model: Model, params: Params, *, factorised: bool = False) -> dict[str, np.ndarray]:
    """Hugging Face's tensors, by name, float32."""
    _check(model, params)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries(model.config, model.task, factorised=factorised):
        leaf: Any = params
        for part in entry.path:
            leaf = leaf[part]
        array = np.asarray(leaf, dtype=np.float32)
        for name, shape, index in entry.tensors(array.shape):
            tensors[name] = entry.to_theirs(array[index], shape)
    if model.config.model_type == "bert_hash" and not factorised:
        tensors["bert.embeddings.word_embeddings.weight"] = fold_words(params)
    return tensors


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
