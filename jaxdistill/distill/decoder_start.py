"""A decoder's start from another decoder: chosen layers as they are, or the part of them that matters most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.config.model_schema import WarmStartConfig
from jaxdistill.distill.layer_choice import layer_indices
from jaxdistill.distill.width_selection import block_differences, check_slice, select_width
from jaxdistill.errors import ModelError
from jaxdistill.models import LlamaConfig, Model, select_layers
from jaxdistill.typing import Batch, Params

_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def start_decoder(
    student: Model,
    params: dict[str, Any],
    teacher: Model,
    teacher_params: Params,
    config: WarmStartConfig,
    batches: Iterable[Batch],
) -> list[str]:
    """Replaces in `params` what `config` names, and says what it took (see `warm_start`)."""
    own, theirs = student.config, teacher.config
    lines = []
    if config.layers is not None:
        count = own.num_hidden_layers
        indices = layer_indices(config.layers, student=count, teacher=theirs.num_hidden_layers)
        how = config.layers if isinstance(config.layers, str) else "as listed"
        lines.append(f"layers 0 … {count - 1} from teacher layers {', '.join(map(str, indices))} ({how})")
        if config.width is not None:
            source = select_width(teacher, teacher_params, own, batches, layers=indices)
            params["embeddings"] = source["embeddings"]
            lines.append(_narrowed(own, theirs))
        else:
            source = {**teacher_params, "decoder": {"layers": select_layers(teacher_params, indices)}}
        params["decoder"], params["norm"] = _float32((source["decoder"], source["norm"]))
        lines += _start_head(params, own, theirs, source)
    if config.embeddings is not None and config.width is None:
        params["embeddings"] = _float32(teacher_params["embeddings"])
        lines.append("embeddings copied")
    return lines


def _narrowed(own: LlamaConfig, theirs: LlamaConfig) -> str:
    return (
        f"of them and of the embeddings the {own.hidden_size} most important of {theirs.hidden_size} channels, "
        f"{own.num_attention_heads} of {theirs.num_attention_heads} heads, {own.num_key_value_heads} of "
        f"{theirs.num_key_value_heads} key heads, {own.intermediate_size} of {theirs.intermediate_size} units"
    )


def _start_head(params: dict[str, Any], own: LlamaConfig, theirs: LlamaConfig, source: Params) -> list[str]:
    """The final norm came along; so does the head, where the student has one and the tokens may be the same."""
    if own.tie_word_embeddings:
        lost = "" if theirs.tie_word_embeddings else "; the teacher's own head is not: the student's is its embeddings"
        return [f"final norm copied{lost}"]
    kernel = source["embeddings"]["word"].T if theirs.tie_word_embeddings else source["head"]["kernel"]
    if kernel.shape != params["head"]["kernel"].shape:
        return ["final norm copied"]
    params["head"] = _float32({"kernel": kernel})
    return [f"final norm and head copied{' (from the embeddings)' if theirs.tie_word_embeddings else ''}"]


def check_decoder(own: LlamaConfig, theirs: LlamaConfig, config: WarmStartConfig) -> None:
    """What `start_decoder` needs of the shapes.

    Raises:
      ModelError: shapes that cannot be copied, or not so.
    """
    if config.embeddings == "svd":
        raise ModelError("warm_start.embeddings: svd is for encoders; use `copy`, or `layers` and `width: importance`")
    if config.width is not None:
        if config.layers is None:
            raise ModelError("warm_start.width: says how copied layers are narrowed; give `layers` too")
        check_slice(own, theirs)
    if config.layers is not None:
        if config.width is None:
            _check_layers(own, theirs)
        layer_indices(config.layers, student=own.num_hidden_layers, teacher=theirs.num_hidden_layers)
    if config.embeddings is not None and config.width is None:
        _check_embeddings(own, theirs)


def _check_layers(own: LlamaConfig, theirs: LlamaConfig) -> None:
    widths = [
        f"{name} is {getattr(own, name)}, there {getattr(theirs, name)}"
        for name in _WIDTHS
        if getattr(own, name) != getattr(theirs, name)
    ]
    if problems := [*widths, *block_differences(own, theirs)]:
        hint = "; for a narrower student add `width: importance`" if widths else ""
        raise ModelError(
            f"warm_start.layers: layers of the student and the teacher are not alike: {'; '.join(problems)}; leave "
            f"`layers` out, or make them equal{hint}"
        )


def _check_embeddings(own: LlamaConfig, theirs: LlamaConfig) -> None:
    if own.vocab_size != theirs.vocab_size:
        raise ModelError(
            f"warm_start.embeddings: the student's vocabulary has {own.vocab_size} tokens and the teacher's "
            f"{theirs.vocab_size}; embeddings can only be taken from a model with the same tokenizer"
        )
    if own.hidden_size != theirs.hidden_size:
        raise ModelError(
            f"warm_start.embeddings: copy needs equal widths, but hidden_size is {own.hidden_size} for the student and "
            f"{theirs.hidden_size} for the teacher; use `layers` and `width: importance`, which slices them"
        )


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), tree)
