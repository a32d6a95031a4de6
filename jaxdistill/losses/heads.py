"""LM heads as they come: [D, V], or a table [V, D]; one or several; checked, and brought to one vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.losses.reduce import AxisName


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Table:
    """A head stored as [V, D], as tied embeddings are: logits = hidden @ rows.T, without a transposed copy of it."""

    rows: Float[Array, "V D"]


Arrays: TypeAlias = Float[Array, "N D"] | Sequence[Float[Array, "N D"]] | None
Head: TypeAlias = Float[Array, "D V"] | Table
Heads: TypeAlias = Head | Sequence[Head] | None


class StoredHead(NamedTuple):
    """A head, and which of its axes is the vocabulary."""

    array: Array
    axis: int

    @property
    def classes(self) -> int:
        """Columns of the vocabulary, padding included."""
        return self.array.shape[self.axis]

    def cut(self, classes: int) -> StoredHead:
        """The first so many classes."""
        return StoredHead(jax.lax.slice_in_dim(self.array, 0, classes, axis=self.axis), self.axis)


def stored_head(head: Head) -> StoredHead:
    """A head with its vocabulary's axis told apart."""
    return StoredHead(head.rows, 0) if isinstance(head, Table) else StoredHead(head, 1)


def checked_teachers(hidden: Arrays, heads: Heads, tokens: int) -> list[tuple[Array, StoredHead]]:
    """Every teacher's hidden states and head, checked."""
    if hidden is None or heads is None:
        raise ValueError("teacher_hidden and teacher_head must be given unless kd_weight is a plain 0, got None")
    several = isinstance(hidden, (list, tuple))
    if several != isinstance(heads, (list, tuple)):
        raise ValueError("teacher_hidden and teacher_head must both be arrays, or both lists with one for each teacher")
    every_hidden: list[Any] = list(hidden) if several else [hidden]
    every_head: list[Any] = list(heads) if isinstance(heads, (list, tuple)) else [heads]
    if len(every_hidden) != len(every_head) or not every_hidden:
        raise ValueError(
            "teacher_hidden and teacher_head must hold one array for each teacher, "
            f"got {len(every_hidden)} and {len(every_head)}"
        )
    pairs = list(zip(every_hidden, map(stored_head, every_head), strict=True))
    for index, (states, head) in enumerate(pairs):
        place = f"[{index}]" if several else ""
        check_model(f"teacher_hidden{place}", f"teacher_head{place}", states, head)
        if states.shape[0] != tokens:
            raise ValueError(f"teacher_hidden{place} must hold the student's {tokens} tokens, got shape {states.shape}")
    return pairs


def check_model(hidden_name: str, head_name: str, hidden: Array, stored: StoredHead) -> None:
    """Raises ValueError unless both are floating matrices that can be multiplied."""
    head, width_axis = stored.array, 1 - stored.axis
    head_axes = "[width, vocabulary]" if width_axis == 0 else "[vocabulary, width]"
    for name, array, axes in ((hidden_name, hidden, "[tokens, width]"), (head_name, head, head_axes)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {array.dtype}")
        if array.ndim != 2 or 0 in array.shape[1:]:
            raise ValueError(f"{name} must have shape {axes}, got {array.shape}")
    if hidden.shape[1] != head.shape[width_axis]:
        raise ValueError(
            f"{hidden_name} and {head_name} must agree in width, got {hidden.shape} and {head.shape}; "
            "a head stored as [vocabulary, width] is to be transposed, or given as a Table"
        )


def one_vocabulary(
    student: StoredHead, teachers: list[StoredHead], vocab_size: int | None, axis_name: AxisName | None
) -> tuple[StoredHead, list[StoredHead], int]:
    """Heads of one width, cut where one is padded further than another, and how many of their columns are classes."""
    heads = [student, *teachers]
    widths = [head.classes for head in heads]
    if len(set(widths)) > 1 and (vocab_size is None or axis_name is not None):
        raise ValueError(
            f"student_head and teacher_head must have the same vocabulary, got {widths} columns; "
            "if they differ in padding only, pass vocab_size, the true one (and pad both alike before spreading them "
            "over a mesh axis)"
        )
    shared = min(widths) * axis_size(axis_name)
    if vocab_size is None:
        return student, teachers, shared
    if not 1 <= vocab_size <= shared:
        raise ValueError(f"vocab_size must lie between 1 and the heads' {shared} columns, got {vocab_size}")
    student, *teachers = (head.cut(min(widths)) for head in heads)
    return student, teachers, vocab_size


def axis_size(axis_name: AxisName | None) -> int:
    """Devices on a mesh axis; 1 without one."""
    return 1 if axis_name is None else jax.lax.psum(1, axis_name)
