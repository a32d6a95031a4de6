"""Loading a Hugging Face directory: names matched, shapes checked all at once, leaves filled one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import ModelError
from jaxdistill.models.build import Model, build, parameter_shapes, structure
from jaxdistill.models.config import EncoderConfig, ModelConfig, config_from_hf, task_from_hf
from jaxdistill.models.convert.safetensors_io import Checkpoint
from jaxdistill.models.convert.tables import PREFIXES, Entry, entries
from jaxdistill.models.hub import resolve
from jaxdistill.models.init import draw, put, take
from jaxdistill.models.llama_config import LlamaConfig

_HEADS = ("pooler", "classifier", "qa_outputs", "transform", "transform_norm", "decoder_bias")
_CLASSIFIERS = {"classification", "token_classification"}
"""Tasks whose heads BERT's files call alike, `classifier`, and which are not each other's."""
_BASE = ("embeddings", "encoder", "pooler", "transformer", "embed_tokens", "layers", "norm")
_BUFFERS = ("position_ids", "token_type_ids", "rotary_emb.inv_freq")
# A tied decoder may have been saved under either of its names; the second is the one our tables read.
_TIED = {
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
}
_TIED_CAUSAL = {"lm_head.weight": "model.embed_tokens.weight"}


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint matched the model, in Hugging Face's names; `str()` is what to show the user (may be empty).

    fresh: the parts of our parameters, by their first name, that the newly initialised ones belong to.
    """

    source: str
    newly_initialised: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    fresh: frozenset[str] = frozenset()

    def __str__(self) -> str:
        lines = []
        if self.newly_initialised:
            lines.append(f"newly initialised, not in {self.source} (train them): {', '.join(self.newly_initialised)}")
        if self.ignored:
            lines.append(f"ignored, in {self.source} but not in the model: {', '.join(self.ignored)}")
        if self.mismatched:
            lines.append(f"shapes that differ in {self.source}: {'; '.join(self.mismatched)}")
        return "\n".join(lines)


def from_pretrained(
    path_or_hub_id: str | Path,
    *,
    task: str = "classification",
    num_labels: int | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    sharding: Any = None,
    remat: str = "none",
    attention: str = "auto",
    revision: str | None = None,
    seed: int = 0,
    report: Callable[[LoadReport], None] | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Loads a Hugging Face directory or hub id (safetensors only) as (model, parameters), leaf by leaf.

    Besides what is loaded already, host memory holds two leaves (a weight of all layers), one of them on its way to
    the devices, and one tensor of the file.

    Args:
        task: "classification", "token_classification", "question_answering" or "masked_lm" of an encoder, "causal_lm"
            of a decoder. A classifier of texts is no classifier of tokens: its head is left out, and a fresh one drawn.
        num_labels: classes; default the checkpoint's.
        dtype: compute dtype of the model.
        param_dtype: dtype of the parameters; bfloat16 halves a frozen teacher.
        sharding: where each leaf is put as it is read: a `jax.sharding.Sharding`, a tree of them like the parameters
            (or a prefix of it), or a function from the tree of parameter shapes to one. Default: the first device.
        remat: see `build`.
        attention: see `build`.
        revision: branch, tag or commit of a hub id.
        seed: of a task head the checkpoint does not have.
        report: called with the `LoadReport`, before any error about shapes is raised.

    Raises:
        ModelError: no such directory, no safetensors, another architecture, or shapes that differ (all listed).
        ExternalError: the hub could not be reached or does not know the id.
    """
    directory = resolve(path_or_hub_id, revision=revision)
    config = config_from_hf(directory)
    model = build(config, task=task, num_labels=num_labels, dtype=dtype, remat=remat, attention=attention)
    placement = _Placement(jnp.dtype(param_dtype), _shardings(sharding, parameter_shapes(model)))
    checkpoint = Checkpoint(directory)
    try:
        params, found = _load(model, checkpoint, placement, seed=seed, report=report)
    finally:
        checkpoint.close()
    if report is not None:
        report(found)
    return model, params


def missing_head(directory: Path, task: str) -> tuple[str, ...]:
    """The tensors of the task's head that a model's directory does not have; nothing of it is read but names.

    Raises:
        ModelError: no safetensors there, or another architecture.
    """
    config = config_from_hf(directory)
    model = build(config, task=task)
    shapes = parameter_shapes(model)
    checkpoint = Checkpoint(directory)
    try:
        names = _canonical_names(config, checkpoint.names)
    finally:
        checkpoint.close()
    head = [entry for entry in entries(config, task) if entry.path[0] in _HEADS]
    tensors = [name for entry in head for name, _, _ in entry.tensors(take(shapes, entry.path).shape)]
    return tuple(name for name in tensors if name not in names)


@dataclass(frozen=True)
class _Placement:
    """In which dtype and where leaves become arrays; shardings is a tree like the parameters, or None."""

    dtype: Any
    shardings: Any

    def __call__(self, path: tuple[str, ...], leaf: np.ndarray) -> jax.Array:
        """Each device takes its part from host memory; nothing passes between processes.

        Returns when it is there: transfers under way keep their leaves in host memory.
        """
        leaf = leaf.astype(self.dtype, copy=False)
        if self.shardings is None:
            return jnp.array(leaf).block_until_ready()
        placed = jax.make_array_from_callback(leaf.shape, take(self.shardings, path), lambda index: leaf[index])
        return placed.block_until_ready()


def _shardings(sharding: Any, shapes: dict[str, Any]) -> Any:
    """A sharding for each leaf of `shapes`, or None."""
    chosen = sharding(shapes) if callable(sharding) else sharding
    return None if chosen is None else jax.tree.broadcast(chosen, shapes)


def _load(
    model: Model,
    checkpoint: Checkpoint,
    placement: _Placement,
    *,
    seed: int,
    report: Callable[[LoadReport], None] | None,
) -> tuple[dict[str, Any], LoadReport]:
    shapes = parameter_shapes(model)
    names = _canonical_names(model.config, checkpoint.names)
    if {model.task, task_from_hf(checkpoint.directory)} == _CLASSIFIERS:
        names = {name: raw for name, raw in names.items() if not name.startswith("classifier.")}
    table = entries(model.config, model.task)
    if model.config.model_type == "bert_hash":
        table += _factorised_entries(model.config, checkpoint, names)
    missing, mismatched, used, fresh = _compare(table, shapes, checkpoint, names)
    read = {names[name] for name in used}
    unused = sorted(set(checkpoint.names) - read)
    ignored = tuple(raw for raw in unused if not raw.endswith(_BUFFERS) and not _is_tied(raw, model))
    newly = tuple(name for entry in fresh for name, _, _ in entry.tensors(take(shapes, entry.path).shape))
    parts = frozenset(entry.path[0] for entry in fresh)
    found = LoadReport(str(checkpoint.directory), newly, ignored, tuple(mismatched), parts)
    if missing or mismatched:
        if report is not None:
            report(found)
        raise ModelError(_complaint(model, checkpoint.directory, missing, mismatched))
    _check_tied(model, checkpoint, names)
    params: dict[str, Any] = {}
    drawn = _fresh(model, [entry.path for entry in fresh], seed) if fresh else {}
    for entry in table:
        if entry in fresh:
            leaf = np.asarray(take(drawn, entry.path))
        else:
            shape = take(shapes, entry.path).shape
            leaf = _read(entry, shape, checkpoint, names, dtype=placement.dtype)
            checkpoint.close()  # pages of a memory map that have been read count as ours until it is closed
        put(params, entry.path, placement(entry.path, leaf))
    if model.config.model_type == "bert_hash" and "bias" not in params["embeddings"]["word_projection"]:
        path = ("embeddings", "word_projection", "bias")  # may have been saved without, which is 0
        put(params, path, placement(path, np.zeros(model.config.hidden_size, np.float32)))
    return params, found


def _canonical_names(config: ModelConfig, raw_names: list[str]) -> dict[str, str]:
    """{the name our table knows: the name in the file}: prefix added, old names and tied decoders renamed."""
    prefix = PREFIXES[config.model_type]
    names: dict[str, str] = {}
    for raw in raw_names:
        name = raw
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if not name.startswith(prefix) and name.split(".")[0] in _BASE:
            name = prefix + name
        names[name] = raw
    causal = _TIED_CAUSAL if config.tie_word_embeddings else {}
    for tied, name in (causal if isinstance(config, LlamaConfig) else _TIED).items():
        # BertHash's decoder cannot be its word embedding, which is never stored as one table
        if tied in names and name not in names and not (config.model_type == "bert_hash" and tied.endswith(".weight")):
            names[name] = names.pop(tied)
    return names


def _is_tied(raw: str, model: Model) -> bool:
    if model.task == "causal_lm":
        return raw in _TIED_CAUSAL and model.config.tie_word_embeddings
    return model.task == "masked_lm" and raw in _TIED and model.config.model_type != "bert_hash"


def _check_tied(model: Model, checkpoint: Checkpoint, names: dict[str, str]) -> None:
    """A head stored beside the table it is said to be tied to must equal it."""
    if model.task != "causal_lm" or not model.config.tie_word_embeddings:
        return
    for head, table in _TIED_CAUSAL.items():
        if head in names and not np.array_equal(checkpoint.read(names[head]), checkpoint.read(names[table])):
            raise ModelError(
                f"{checkpoint.directory}: tie_word_embeddings is true, but {head} is not {table}; set it to false in "
                "config.json, or drop the tensor that was not trained"
            )


def _factorised_entries(config: EncoderConfig, checkpoint: Checkpoint, names: dict[str, str]) -> list[Entry]:
    """BertHash's three word tensors, told apart by shape because published checkpoints' names are not fixed."""
    known = ("position_embeddings", "token_type_embeddings", "LayerNorm")
    prefix = PREFIXES["bert_hash"] + "embeddings."
    vocabulary, width, narrow = config.vocab_size, config.hidden_size, config.projections
    wanted = {"word_table": (vocabulary, narrow), "kernel": (width, narrow), "bias": (width,)}
    table, problems = [], []

    def is_projection(name: str) -> bool:  # where the vocabulary is as large as the model is wide, shapes do not tell
        return "proj" in name or name.removesuffix("weight") + "bias" in names

    for name in sorted(names, key=is_projection):
        if not name.startswith(prefix) or name.removeprefix(prefix).startswith(known) or name.endswith(_BUFFERS):
            continue
        shape = checkpoint.shape(names[name])
        ours = next((ours for ours, expected in wanted.items() if expected == shape), None)
        if ours is None:
            problems.append(f"{names[name]} {list(shape)}")
            continue
        del wanted[ours]
        path = ("embeddings", ours) if ours == "word_table" else ("embeddings", "word_projection", ours)
        table.append(Entry(path, (name,), "copy" if ours == "word_table" else "linear"))
    if problems or wanted.keys() & {"word_table", "kernel"}:
        raise ModelError(
            f"{checkpoint.directory}: a bert_hash word embedding is a table [{vocabulary}, {narrow}], a projection "
            f"[{width}, {narrow}] and perhaps a bias [{width}]; "
            + (f"do not fit: {', '.join(problems)}" if problems else f"missing: {', '.join(wanted)}")
        )
    return table


def _compare(
    table: list[Entry], shapes: dict[str, Any], checkpoint: Checkpoint, names: dict[str, str]
) -> tuple[list[str], list[str], set[str], list[Entry]]:
    """(missing tensors, shapes that differ, tensors used, heads the checkpoint does not have at all)."""
    missing, mismatched, used, fresh = [], [], set(), []
    for entry in table:
        expected = list(entry.tensors(take(shapes, entry.path).shape))
        absent = [name for name, _, _ in expected if name not in names]
        if absent and entry.path[0] in _HEADS:
            fresh.append(entry)
        else:
            missing += absent
        for name, shape, _ in expected:
            if name in names:
                used.add(name)
                actual = checkpoint.shape(names[name])
                if actual != shape:
                    mismatched.append(f"{names[name]}: {list(actual)} in the checkpoint, {list(shape)} in the model")
    return missing, mismatched, used, fresh


def _complaint(model: Model, directory: Path, missing: list[str], mismatched: list[str]) -> str:
    lines = [f"{directory}: its weights are not those of its config.json ({model.config.model_type}, {model.task})"]
    if missing:
        shown = missing if len(missing) <= 8 else [*missing[:8], f"… and {len(missing) - 8} more"]
        lines.append(f"missing: {', '.join(shown)}")
    if mismatched:
        lines.append("shapes differ: " + "; ".join(mismatched))
    if any("classifier" in line for line in mismatched):
        lines.append(
            "give a checkpoint without a classifier, or with as many classes (from Python: leave num_labels out)"
        )
    return "; ".join(lines)


def _read(
    entry: Entry, shape: tuple[int, ...], checkpoint: Checkpoint, names: dict[str, str], *, dtype: Any
) -> np.ndarray:
    """One of our leaves, filled tensor by tensor."""
    leaf = np.empty(shape, dtype)
    for name, _, index in entry.tensors(shape):
        part = leaf[index]
        part[...] = entry.to_ours(checkpoint.read(names[name]), part.shape)
    return leaf


def _fresh(model: Model, paths: list[tuple[str, ...]], seed: int) -> dict[str, Any]:
    """The leaves at `paths` exactly as `init` would draw them, and nothing else."""
    declared = structure(model).parameters
    return jax.jit(lambda key: draw(key, {path: declared[path] for path in paths}))(jax.random.key(seed))
