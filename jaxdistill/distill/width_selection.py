"""A narrower decoder as a slice of a wider one: the heads, feed-forward units and channels that matter most."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdistill.errors import ModelError
from jaxdistill.models import DecoderSlice, Importance, LlamaConfig, Model, decoder_importance, slice_decoder
from jaxdistill.parallel import replicated
from jaxdistill.typing import Batch, Params

FEW = 8
"""So many batches are looked at."""

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def select_width(
    teacher_model: Model,
    teacher_params: Params,
    student_config: LlamaConfig,
    batches: Iterable[Batch],
    *,
    layers: Sequence[int],
) -> dict[str, Any]:
    """The most important part of a decoder that has a student's widths, as parameters of their own.

    The channels of the hidden states are chosen once, by their mean absolute value after every norm of the chosen
    layers and the final one (arXiv:2407.14679); of each layer, the key heads by what their query heads add, of each of
    those the query heads that add most, and feed-forward units likewise (`models.decoder_importance`). Norms divide by
    the root mean square of fewer channels; their scales are multiplied so that what the kept channels read stays of the
    same size on these batches, which makes the slice exact where nothing but unused parts is left out.

    Args:
        teacher_model: the decoder to slice.
        teacher_params: its parameters, layers stacked, on one device or spread over a mesh.
        student_config: its widths count, and its number of layers is that of `layers`.
        batches: text as the teacher reads it; the first `FEW` are looked at.
        layers: the teacher's layers (0-based) that are kept, in order.

    Returns:
        parameters of a model of those widths, float32, its embeddings tied or not as the teacher's are.

    Raises:
        ModelError: the student is not such a part of the teacher, or there is no text.
    """
    check_slice(student_config, teacher_model.config)
    measured = (decoder_importance(teacher_model, teacher_params, batch) for batch in itertools.islice(batches, FEW))
    total = next(measured, None)
    for more in measured:
        total = total + more
    importance = None if total is None else _on_host(total)
    if importance is None or not importance.tokens:
        raise ModelError("warm_start.width: no text to measure importance on; the training data gave no batch")
    part = most_important(importance, student_config, teacher_model.config, layers)
    return jax.jit(lambda params: slice_decoder(params, part))(teacher_params)


def _on_host(importance: Importance) -> Importance:
    """The numbers, whole in every process: what is spread over the devices of several cannot be fetched."""
    sharding = importance.tokens.sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        importance = jax.jit(lambda tree: tree, out_shardings=replicated(sharding.mesh))(importance)
    return jax.device_get(importance)


def check_slice(own: LlamaConfig, theirs: LlamaConfig) -> None:
    """What `select_width` needs of a student's and a teacher's shapes.

    Raises:
        ModelError: everything that keeps the student from being a part of the teacher.
    """
    problems = [
        f"{name} {getattr(own, name)} is more than {getattr(theirs, name)}"
        for name in _SIZES
        if getattr(own, name) > getattr(theirs, name)
    ]
    shared = [config.num_attention_heads // config.num_key_value_heads for config in (own, theirs)]
    if shared[0] > shared[1]:
        problems.append(f"{shared[0]} query heads share a key head, there {shared[1]}")
    for name in ("head_dim", "vocab_size"):
        if getattr(own, name) != getattr(theirs, name):
            problems.append(f"{name} is {getattr(own, name)}, there {getattr(theirs, name)}")
    problems += block_differences(own, theirs)
    if problems:
        raise ModelError(
            f"warm_start.width: the student is no part of the teacher: {'; '.join(problems)}; a part has whole heads "
            "of the teacher's size, no more of anything, and the same kind of layer (derive gives such shapes)"
        )


def block_differences(own: LlamaConfig, theirs: LlamaConfig) -> list[str]:
    """What makes the same numbers mean something else in the student's layers, or leaves no place for them."""
    return [
        f"{name} is {_shown(getattr(own, name))}, there {_shown(getattr(theirs, name))}"
        for name in ("hidden_act", "attention_bias", "output_bias", "mlp_bias", "qk_norm")
        if getattr(own, name) != getattr(theirs, name)
    ]


def _shown(value: bool | str) -> str:
    return str(value).lower()


def most_important(
    importance: Importance, student: LlamaConfig, teacher: LlamaConfig, layers: Sequence[int]
) -> DecoderSlice:
    """The heads, units and channels to keep, in the order the teacher has them."""
    chosen = np.asarray(layers)
    channels = _largest(_channel_scores(importance, chosen), student.hidden_size)
    key_heads, query_heads = _heads(np.asarray(importance.heads)[chosen], student, teacher.num_key_value_heads)
    return DecoderSlice(
        layers=chosen,
        channels=channels,
        key_heads=key_heads,
        query_heads=query_heads,
        units=_largest(np.asarray(importance.units)[chosen], student.intermediate_size),
        norm_scales=_norm_scales(importance, chosen, channels),
    )


def _norm_scales(importance: Importance, layers: np.ndarray, channels: np.ndarray) -> tuple[Any, Any, float]:
    """Root mean square of the kept channels over that of all, at each norm."""
    if len(channels) == importance.final_energy.size:
        return np.ones(len(layers)), np.ones(len(layers)), 1.0
    energy = importance.energy[layers][:, :, channels].mean(axis=-1) / importance.tokens
    final = importance.final_energy[channels].mean() / importance.tokens
    return np.sqrt(energy[:, 0]), np.sqrt(energy[:, 1]), float(np.sqrt(final))


def _channel_scores(importance: Importance, layers: np.ndarray) -> np.ndarray:
    """One score a channel; every norm has the same say, whatever the size of what it gives."""
    every = [*importance.channels[layers].reshape(-1, importance.channels.shape[-1]), importance.final_channels]
    return np.sum([values / max(float(values.sum()), 1e-30) for values in every], axis=0)


def _heads(scores: np.ndarray, student: LlamaConfig, key_heads: int) -> tuple[np.ndarray, np.ndarray]:
    """(key heads [L, K], query heads [L, N]): the best groups, and the best heads of each."""
    count, shared = student.num_key_value_heads, student.num_attention_heads // student.num_key_value_heads
    grouped = scores.reshape(len(scores), key_heads, -1)
    within = _largest(grouped, shared)
    groups = _largest(np.take_along_axis(grouped, within, axis=-1).sum(axis=-1), count)
    of_groups = np.take_along_axis(within, groups[..., None], axis=1)
    return groups, (groups[..., None] * grouped.shape[-1] + of_groups).reshape(len(scores), -1)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` largest along the last axis; of equals the first."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    return np.sort(order, axis=-1)
