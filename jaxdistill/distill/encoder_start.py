"""An encoder's start from another encoder: chosen layers, and embeddings copied or reduced by a truncated SVD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.config.model_schema import WarmStartConfig
from jaxdistill.distill.layer_choice import layer_indices
from jaxdistill.errors import ModelError
from jaxdistill.models import (
    EncoderConfig,
    Model,
    class_order,
    positions,
    reorder_classes,
    select_layers,
    svd_factorise,
)
from jaxdistill.models.convert.save import fold_words
from jaxdistill.typing import Array, Params


def start_encoder(
    student: Model, params: dict[str, Any], teacher: Model, teacher_params: Params, config: WarmStartConfig
) -> list[str]:
    """Replaces in `params` what `config` names, and says what it took (see `warm_start`)."""
    lines = []
    if config.layers is not None:
        lines += _copy_layers(params, student, teacher, teacher_params, config.layers)
    if config.embeddings is not None:
        own, theirs = student.config, teacher.config
        lines += _embeddings_start(config, own, theirs)(params, own, theirs, teacher_params)
    return lines


def check_encoder(own: EncoderConfig, theirs: EncoderConfig, config: WarmStartConfig) -> None:
    """What `start_encoder` needs of the shapes.

    Raises:
      ModelError: shapes that cannot be copied.
    """
    if config.width is not None:
        raise ModelError("warm_start.width: only decoders are narrowed by importance; leave `width` out")
    if config.layers is not None:
        _check_widths(own, theirs)
        layer_indices(config.layers, student=own.num_hidden_layers, teacher=theirs.num_hidden_layers)
    if config.embeddings is not None:
        _check_vocabulary(own, theirs)
        _embeddings_start(config, own, theirs)


# --- layers ----------------------------------------------------------------------------------------------------------


def _copy_layers(
    params: dict[str, Any], student: Model, teacher: Model, teacher_params: Params, layers: str | tuple[int, ...]
) -> list[str]:
    """Layers and, where shapes and meaning agree, what follows them."""
    own, theirs = student.config, teacher.config
    count = own.num_hidden_layers
    indices = layer_indices(layers, student=count, teacher=theirs.num_hidden_layers)
    params["encoder"] = {**params["encoder"], "layers": _float32(select_layers(teacher_params, indices))}
    how = layers if isinstance(layers, str) else "as listed"
    lines = [f"layers 0 … {count - 1} from teacher layers {', '.join(map(str, indices))} ({how})"]
    taken = []
    for name in sorted(params.keys() - {"embeddings", "encoder"}):
        if not _same_head(student.task, own, theirs) or _shapes(params[name]) != _shapes(teacher_params.get(name)):
            continue
        source = teacher_params
        if name == "classifier" and own.id2label is not None and theirs.id2label is not None:
            order = class_order(theirs.id2label, own.id2label)
            if order is None:
                continue
            source = reorder_classes(teacher_params, order)
        params[name] = _float32(source[name])
        taken.append(name)
    return [*lines, f"{' and '.join(taken)} copied"] if taken else lines


def _check_widths(own: EncoderConfig, theirs: EncoderConfig) -> None:
    fields = ("hidden_size", "num_attention_heads", "intermediate_size")
    different = [
        f"{f} {getattr(own, f)} and {getattr(theirs, f)}" for f in fields if getattr(own, f) != getattr(theirs, f)
    ]
    if different:
        raise ModelError(
            f"warm_start.layers: student and teacher differ in {', '.join(different)}, so layers cannot be copied; "
            "leave `layers` out, or give the student the teacher's widths"
        )


def _same_head(task: str, own: EncoderConfig, theirs: EncoderConfig) -> bool:
    """Whether the numbers of one's head mean the same in the other's."""
    if task == "masked_lm":
        return own.head_act == theirs.head_act
    return (own.model_type == "distilbert") == (theirs.model_type == "distilbert")  # which squashes otherwise


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)


# --- embeddings ------------------------------------------------------------------------------------------------------


def _check_vocabulary(own: EncoderConfig, theirs: EncoderConfig) -> None:
    if own.vocab_size != theirs.vocab_size:
        raise ModelError(
            f"warm_start.embeddings: the student's vocabulary has {own.vocab_size} tokens and the teacher's "
            f"{theirs.vocab_size}; embeddings can only be taken from a model with the same tokenizer"
        )


def _embeddings_start(config: WarmStartConfig, own: EncoderConfig, theirs: EncoderConfig) -> Callable[..., list[str]]:
    """Which of the ways below fits what was asked for."""
    factorised = own.model_type == "bert_hash"
    if config.embeddings == "copy" or (not factorised and own.hidden_size == theirs.hidden_size):
        return _copy_embeddings
    return _factorise_embeddings if factorised and config.layers is not None else _reduce_embeddings


def _copy_embeddings(params: dict[str, Any], own: EncoderConfig, theirs: EncoderConfig, teacher: Params) -> list[str]:
    """Every table and the norm, as they are."""
    if own.hidden_size != theirs.hidden_size:
        raise ModelError(
            f"warm_start.embeddings: copy needs equal widths, but hidden_size is {own.hidden_size} for the student and "
            f"{theirs.hidden_size} for the teacher; use `embeddings: svd`, which projects the table"
        )
    embeddings = dict(params["embeddings"])
    if own.model_type == "bert_hash":
        if (own.model_type, own.projections) != (theirs.model_type, theirs.projections):
            raise ModelError(
                "warm_start.embeddings: copy cannot fill a factorised word table (bert_hash) from an ordinary one or "
                "one of another `projections`; use `embeddings: svd`"
            )
        embeddings |= _float32({name: teacher["embeddings"][name] for name in ("word_table", "word_projection")})
    else:
        embeddings["word"] = jnp.asarray(_words(theirs, teacher))
    _fill_contexts(embeddings, own, theirs, teacher)
    embeddings["norm"] = _float32(teacher["embeddings"]["norm"])
    params["embeddings"] = embeddings
    return ["embeddings copied"]


def _factorise_embeddings(
    params: dict[str, Any], own: EncoderConfig, theirs: EncoderConfig, teacher: Params
) -> list[str]:
    """The factorised table and projection nearest to the teacher's word table, everything else as it is."""
    _check_narrower(own.projections, theirs)
    left, right, mean = map(jnp.asarray, svd_factorise(jnp.asarray(_words(theirs, teacher)), own.projections))
    embeddings = dict(params["embeddings"]) | {"word_table": left, "word_projection": {"kernel": right, "bias": mean}}
    _fill_contexts(embeddings, own, theirs, teacher)
    embeddings["norm"] = _float32(teacher["embeddings"]["norm"])
    params["embeddings"] = embeddings
    return [f"word embedding from the {own.projections} largest directions of the teacher's, its other tables copied"]


def _reduce_embeddings(params: dict[str, Any], own: EncoderConfig, theirs: EncoderConfig, teacher: Params) -> list[str]:
    """Tables in the coordinates of the teacher's largest-variance directions."""
    table = _words(theirs, teacher)
    width = own.projections if own.model_type == "bert_hash" else own.hidden_size
    _check_narrower(width, theirs)
    left, right, _ = svd_factorise(jnp.asarray(table), width)
    embeddings = dict(params["embeddings"])
    if own.model_type == "bert_hash":
        embeddings["word_table"] = jnp.asarray(left)
        params["embeddings"] = embeddings
        return [f"word table from the {width} largest directions of the teacher's, unit standard deviation"]
    deviations = np.linalg.norm(right, axis=1)
    words = left * deviations
    scale = np.std(table) / np.std(words)
    onto = (right / deviations[:, None]).T * scale
    embeddings["word"] = jnp.asarray(words * scale)
    _fill_contexts(embeddings, own, theirs, teacher, onto)
    params["embeddings"] = embeddings
    return [f"embeddings from the {width} largest directions of the teacher's {theirs.hidden_size}"]


def _check_narrower(width: int, theirs: EncoderConfig) -> None:
    if width > theirs.hidden_size:
        raise ModelError(
            f"warm_start.embeddings: svd can only narrow, but the student's table is {width} wide and the teacher's "
            f"hidden_size is {theirs.hidden_size}; leave `embeddings` out"
        )


def _words(config: EncoderConfig, params: Params) -> np.ndarray:
    """The word table [V, D], a factorised one multiplied out; float32."""
    if config.model_type == "bert_hash":
        return fold_words(params)
    return np.asarray(params["embeddings"]["word"], np.float32)


def _fill_contexts(
    embeddings: dict[str, Any],
    own: EncoderConfig,
    theirs: EncoderConfig,
    teacher: Params,
    onto: np.ndarray | None = None,
) -> None:
    """The teacher's position and token-type tables, from position 0 on, projected by `onto` [D_t, D_s] if given.

    A student without token types gets the teacher's first type added to its positions: the same sum for every token.
    """
    tables = {"position": np.asarray(teacher["embeddings"]["position"], np.float32)[_first_position(theirs) :]}
    if "token_type" in teacher["embeddings"]:
        token_type = np.asarray(teacher["embeddings"]["token_type"], np.float32)
        if own.type_vocab_size:
            tables["token_type"] = token_type
        else:
            tables["position"] = tables["position"] + token_type[0]
    for name, table in tables.items():
        start = _first_position(own) if name == "position" else 0
        _fill(embeddings, name, table if onto is None else table @ onto, start=start)


def _first_position(config: EncoderConfig) -> int:
    """Row of position 0 (RoBERTa's table starts with rows for padding)."""
    return config.max_position_embeddings - positions(config)


def _fill(embeddings: dict[str, Any], name: str, rows: np.ndarray, *, start: int = 0) -> None:
    """Rows of a table replaced from `start` on; the student may have more or fewer than are given."""
    table = np.array(embeddings[name], np.float32)
    count = min(len(table) - start, len(rows))
    table[start : start + count] = rows[:count]
    embeddings[name] = jnp.asarray(table)


def _float32(tree: Any) -> Any:
    def convert(leaf: Array) -> Array:
        return jnp.array(leaf, jnp.float32)

    return jax.tree.map(convert, tree)
