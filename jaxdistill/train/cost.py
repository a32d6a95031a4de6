"""What compiling a step costs, in steps: a rough model, whose one use is to choose how many lengths to compile for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxdistill.distill.teacher import OnlineTeacher, Teacher
from jaxdistill.models import Model, parameter_count, parameter_shapes


@dataclass(frozen=True)
class _Device:
    """Seconds to compile a step, seconds that the smallest step takes, and FLOP/s of a large one; orders of magnitude.

    The first is measured on two CPU cores; the others are guesses, which err towards fewer programs.
    """

    compile_seconds: float
    least_step_seconds: float
    flops_per_second: float


_CPU = _Device(6.0, 0.01, 1.5e11)
_ACCELERATOR = _Device(20.0, 0.002, 5e13)


def compile_steps(student: Model, teachers: Sequence[Teacher], *, tokens: float, platform: str | None = None) -> float:
    """How many steps take as long as compiling one.

    A step is taken to cost 6 FLOPs a token for each of the student's parameters outside embeddings, and 2 for each of a
    teacher's that runs in it; attention's quadratic part is left out.

    Args:
      student: the model trained.
      teachers: its teachers; a cached one costs nothing.
      tokens: of an average batch.
      platform: `cpu`, or any other for an accelerator; default, JAX's own.
    """
    device = _CPU if (platform or jax.default_backend()) == "cpu" else _ACCELERATOR
    weights = 6 * _weights(student)
    weights += sum(2 * _weights(teacher.model) for teacher in teachers if isinstance(teacher, OnlineTeacher))
    return device.compile_seconds / (device.least_step_seconds + weights * tokens / device.flops_per_second)


def _weights(model: Model) -> int:
    """Parameters that every token is multiplied with."""
    shapes = parameter_shapes(model)
    return parameter_count(shapes) - parameter_count(shapes["embeddings"])
