"""Learned matrices from a student's width to its teachers', for terms that compare vectors of one width.

They are trained beside the student's parameters and kept beside them in the train state, by term and teacher; nothing
that is handed on or exported has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxdistill.parallel.rules import LogicalAxes
from jaxdistill.typing import Array, Bool, Float, Params, PRNGKeyArray

PROJECTION_AXES: LogicalAxes = (None, "embed", None)
"""Logical names of a projection's axes: its student's width is shared as any other axis of model width."""


@dataclass(frozen=True)
class Projection:
    """The matrices of one term towards one teacher, [count, D_s, D_t]: one for each pair of layers, or one for all."""

    count: int
    student_width: int
    teacher_width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of all its matrices together."""
        return self.count, self.student_width, self.teacher_width

    def init(self, key: PRNGKeyArray) -> Float[Array, "P D_s D_t"]:
        """Between equal widths the identity, so that a student that begins as its teacher is left alone; else random.

        Random entries have variance 1/D_s, which keeps the size of what is projected.
        """
        if self.student_width == self.teacher_width:
            return jnp.broadcast_to(jnp.eye(self.student_width, dtype=jnp.float32), self.shape)
        return jax.random.normal(key, self.shape, jnp.float32) / jnp.sqrt(jnp.float32(self.student_width))


Projections: TypeAlias = Mapping[str, Mapping[str, Projection]]
"""Of each term by its name, of each of its teachers by `teacher_name`."""


def teacher_name(index: int) -> str:
    """What a teacher's projections are called: `teacher_1` for the first."""
    return f"teacher_{index + 1}"


def init_projections(projections: Projections, key: PRNGKeyArray) -> Params:
    """Their matrices, float32: {term: {teacher: [P, D_s, D_t]}}; {} for none."""
    made: dict[str, dict[str, Array]] = {}
    for number, (term, of_teachers) in enumerate(projections.items()):
        keys = jax.random.split(jax.random.fold_in(key, number), len(of_teachers))
        made[term] = {name: each.init(own) for (name, each), own in zip(of_teachers.items(), keys, strict=True)}
    return made


def project(
    states: Float[Array, "*B D_s"], kernel: Float[Array, "D_s D_t"], where: Bool[Array, "*B"]
) -> Float[Array, "*B D_t"]:
    """states · kernel, float32, multiplied in the states' dtype; 0 where `where` is false, whatever is there."""
    # before the product: what padding holds must not reach the kernel's gradient
    counted = jnp.where(where[..., None], states, jnp.zeros((), states.dtype))
    return jnp.matmul(counted, kernel.astype(states.dtype), preferred_element_type=jnp.float32)
