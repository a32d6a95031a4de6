"""The divergence from a teacher of which only the most probable classes are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from jaxdistill import losses
from jaxdistill.config.loss_schema import DivergenceTerm, TermConfig
from jaxdistill.distill.positions import learned
from jaxdistill.distill.schedules import Scheduled, make_schedule, number
from jaxdistill.distill.signals import LOGITS, Wanted
from jaxdistill.distill.top_k import TOP_K
from jaxdistill.errors import ConfigError
from jaxdistill.typing import Array, Batch, Bool, Scalar, Signals


@dataclass(frozen=True, kw_only=True)
class TopKDivergence:
    """T²·KL(teacher ‖ student) over the stored classes and, as one class more, all others.

    stored_temperatures: those at which the teacher's log-normaliser is stored; `temperature` is always one of them.
    """

    name: str
    weight: Scheduled
    temperature: Scheduled
    stored_temperatures: tuple[float, ...]
    group: Literal["kd"] = "kd"
    student_outputs: Wanted = LOGITS
    teacher_outputs: tuple[Wanted, ...] = (((TOP_K, None),),)
    coupled: Literal[False] = False

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return learned(batch)

    def stored(self, teacher: Signals) -> losses.TopK:
        """What the loss takes, at this temperature."""
        found = teacher[TOP_K]
        apart = jnp.abs(jnp.asarray(self.stored_temperatures, jnp.float32) - number(self.temperature))
        normalizer = jnp.take(found["log_normalizer"], jnp.argmin(apart), axis=-1)
        return losses.TopK(found["ids"], found["logits"], normalizer)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        values = losses.top_k_forward_kl(
            student["logits"], *self.stored(teachers[0]), temperature=number(self.temperature), where=where
        )
        return losses.masked_sum_count(values, where)[0]


def make_top_k_term(
    config: TermConfig, *, name: str, stored_temperatures: tuple[float, ...], total_steps: int | None
) -> TopKDivergence:
    """The term on a stored teacher that a configuration describes.

    Raises:
      ConfigError: a term that cannot be known from what is stored.
    """
    if not (isinstance(config, DivergenceTerm) and config.type == "forward_kl"):
        raise ConfigError(f"loss: {config.type} cannot be had from a teacher's top tokens; set teacher_cache: off")
    scheduled: dict[str, Any] = {
        key: make_schedule(getattr(config, key), total_steps=total_steps) for key in ("weight", "temperature")
    }
    return TopKDivergence(name=name, stored_temperatures=stored_temperatures, **scheduled)
