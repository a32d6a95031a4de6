"""Weights and temperatures that change with the optimizer step, evaluated inside the compiled step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import jax.numpy as jnp

from jaxdistill.config import loss_schema
from jaxdistill.errors import ConfigError
from jaxdistill.typing import Scalar

T = TypeVar("T")


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` in `steps` steps that begin at step `begin`; constant before and after."""

    start: float
    end: float
    begin: int
    steps: int
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, step: Scalar) -> Scalar:
        """The number at an optimizer step (counted from 0), float32 []."""
        done = jnp.clip((step - self.begin).astype(jnp.float32) / self.steps, 0.0, 1.0)
        if self.shape == "cosine":
            done = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
        return self.start * (1.0 - done) + self.end * done


@dataclass(frozen=True)
class Stairs:
    """The first value before the first moment, the second from there on, and so on."""

    values: tuple[float, ...]
    moments: tuple[int, ...]

    def at(self, step: Scalar) -> Scalar:
        """The number at an optimizer step (counted from 0), float32 []."""
        passed = jnp.sum(step >= jnp.asarray(self.moments, jnp.int32), dtype=jnp.int32)
        return jnp.asarray(self.values, jnp.float32)[passed]


Scheduled: TypeAlias = float | Ramp | Stairs
"""A number, or one that changes with the step."""


def make_schedule(written: float | loss_schema.Schedule, *, total_steps: int | None) -> Scheduled:
    """The schedule a configuration describes, its shares of the stage in steps.

    Raises:
      ConfigError: it speaks of shares, and the number of steps is not known.
    """
    if not isinstance(written, loss_schema.Schedule):
        return float(written)
    if written.schedule == "steps":
        return Stairs(written.values, tuple(_steps(moment, total_steps) for moment in written.at))
    assert written.start is not None
    assert written.end is not None
    begin = _steps(written.after, total_steps) if written.after else 0
    steps = _known(total_steps) - begin if written.over is None else _steps(written.over, total_steps)
    return Ramp(written.start, written.end, begin, max(1, steps), written.schedule)


def always_zero(written: float | loss_schema.Schedule) -> bool:
    """Whether a weight never is anything but 0."""
    return not any(written.extremes) if isinstance(written, loss_schema.Schedule) else written == 0


def number(value: Scheduled | Scalar) -> float | Scalar:
    """A number that `at_step` has put in the place of a schedule.

    Raises:
      ValueError: it has not.
    """
    if isinstance(value, Ramp | Stairs):
        raise ValueError("the loss changes with the optimizer step: pass step=")
    return value


def at_step(term: T, step: Scalar | None) -> T:
    """The term with numbers in the place of its schedules.

    Raises:
      ValueError: it has some, and there is no step.
    """
    fields = ((field.name, getattr(term, field.name)) for field in dataclasses.fields(term))  # pyright: ignore[reportArgumentType]
    changing: dict[str, Any] = {name: value for name, value in fields if isinstance(value, Ramp | Stairs)}
    if not changing:
        return term
    if step is None:
        raise ValueError(f"{' and '.join(changing)} of the loss change with the optimizer step: pass step=")
    numbers = {name: value.at(jnp.asarray(step, jnp.int32)) for name, value in changing.items()}
    return dataclasses.replace(term, **numbers)  # pyright: ignore[reportArgumentType]


def _steps(moment: float, total: int | None) -> int:
    """A number of steps, from one or from a share of all of them."""
    return int(moment) if moment >= 1 else round(moment * _known(total))


def _known(total: int | None) -> int:
    if total is None:
        raise ConfigError("loss: a schedule in shares of the stage's steps needs their number; pass total_steps")
    return total
