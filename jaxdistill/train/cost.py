"""What a step and its compilation take: a rough model, which decides how many lengths are worth a program, and how many
steps are worth one dispatch."""

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


_DISPATCH_SECONDS = 0.1
"""Of steps in one dispatch at most: many times what the host needs for it, and soon over when a run is to stop."""
_MOST_STEPS = 8


def compile_steps(student: Model, teachers: Sequence[Teacher], *, tokens: float, platform: str | None = None) -> float:
    """How many steps take as long as compiling one; arguments as `step_seconds`."""
    device = _device(platform)
    return device.compile_seconds / step_seconds(student, teachers, tokens=tokens, platform=platform)


def dispatch_steps(student: Model, teachers: Sequence[Teacher], *, tokens: float, platform: str | None = None) -> int:
    """How many steps to send to the device at once, 1 to 8; arguments as `step_seconds`.

    The host's work for a dispatch then hides behind the device's, however small the step.
    """
    seconds = step_seconds(student, teachers, tokens=tokens, platform=platform)
    return max(1, min(_MOST_STEPS, int(_DISPATCH_SECONDS / seconds)))


def step_seconds(student: Model, teachers: Sequence[Teacher], *, tokens: float, platform: str | None = None) -> float:
    """About how long one step takes.

    A step is taken to cost 6 FLOPs a token for each of the student's parameters outside embeddings, and 2 for each of a
    teacher's that runs in it; attention's quadratic part is left out.

    Args:
      student: the model trained.
      teachers: its teachers; a cached one costs nothing.
      tokens: of an average batch.
      platform: `cpu`, or any other for an accelerator; default, JAX's own.
    """
    device = _device(platform)
    weights = 6 * _weights(student)
    weights += sum(2 * _weights(teacher.model) for teacher in teachers if isinstance(teacher, OnlineTeacher))
    return device.least_step_seconds + weights * tokens / device.flops_per_second


def _device(platform: str | None) -> _Device:
    return _CPU if (platform or jax.default_backend()) == "cpu" else _ACCELERATOR


def _weights(model: Model) -> int:
    """Parameters that every token is multiplied with."""
    shapes = parameter_shapes(model)
    return parameter_count(shapes) - parameter_count(shapes["embeddings"])
