"""Several students of one shape in one compiled step: one teacher forward, and a `vmap` over the students.

Whatever depends on the batch and the teacher alone is not batched by `vmap`, and so is computed once. What tells the
students apart is their state, stacked on a leading axis, and numbers of the loss and of the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.distill.objective import Metrics, Objective
from jaxdistill.errors import ConfigError
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.train.program import StepProgram
from jaxdistill.train.state import TrainState
from jaxdistill.typing import Batch, Params, Scalar

Numbers = Mapping[str, Mapping[str, tuple[float, ...]]]
"""By a term's name, what differs of it between n students (`weight`, `temperature`): n numbers each."""


@dataclass(frozen=True)
class SweptProgram(StepProgram):
    """The step of n students whose objectives and learning rates differ in numbers alone.

    numbers: what differs between their terms. rates: each one's learning rate as a multiple of the optimizer's.
    """

    numbers: Numbers
    rates: tuple[float, ...]

    def run(
        self, state: TrainState, teacher_params: Sequence[Params], batch: Batch, **how: Any
    ) -> tuple[TrainState, Metrics]:
        """One update of every student, state and all stacked on a leading axis of n.

        The metrics of student i begin with `i/`; `loss` is that of all, and `skipped` counts where all were.
        """

        def one(state: TrainState, numbers: dict[str, dict[str, Scalar]], rate: Scalar) -> tuple[TrainState, Metrics]:
            objective, optimizer = with_numbers(self.objective, numbers), _at_rate(self.optimizer, rate)
            program = StepProgram(self.student, self.teachers, objective, optimizer, self.accumulate)
            return program.run(state, teacher_params, batch, **how)

        each = {
            name: {field: jnp.asarray(values, jnp.float32) for field, values in fields.items()}
            for name, fields in self.numbers.items()
        }
        state, metrics = jax.vmap(one)(state, each, jnp.asarray(self.rates, jnp.float32))
        return state, _by_student(metrics, len(self.rates))


def with_numbers(objective: Objective, numbers: Mapping[str, Mapping[str, Any]]) -> Objective:
    """The objective with numbers in its terms, which may be traced."""

    def changed(terms: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(replace(term, **numbers.get(term.name, {})) for term in terms)

    fused = None if objective.fused is None else replace(objective.fused, terms=changed(objective.fused.terms))
    return replace(objective, terms=changed(objective.terms), fused=fused)


def common_objective(objectives: Sequence[Objective]) -> tuple[Objective, Numbers]:
    """One objective with every term that any of several has, and the numbers in which they differ.

    A term that an objective lacks has weight 0 there.

    Raises:
      ConfigError: none has all terms.
    """
    terms: list[dict[str, Any]] = [{term.name: term for term in objective.every_term} for objective in objectives]
    names = set().union(*terms)
    base = next((place for place, own in enumerate(terms) if set(own) == names), None)
    if base is None:
        raise ConfigError("sweep: no combination has every term of the loss; give one in which no weight is 0")
    numbers: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, reference in terms[base].items():
        found = {"weight": tuple(0.0 if name not in own else own[name].weight for own in terms)}
        if hasattr(reference, "temperature"):
            found["temperature"] = tuple(own.get(name, reference).temperature for own in terms)
        differing = {field: values for field, values in found.items() if len(set(values)) > 1}
        if differing:
            numbers[name] = differing
    return objectives[base], numbers


def student_of(tree: Any, index: int) -> Any:
    """One student's part of a tree that is stacked."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _at_rate(optimizer: GuardedTransformation, rate: Scalar) -> GuardedTransformation:
    """The optimizer with another learning rate: AdamW's update, decay included, is proportional to it."""

    def update(*arguments: Any, **named: Any) -> Any:
        updates, state = optimizer.update(*arguments, **named)
        return jax.tree.map(lambda change: rate * change, updates), state

    return GuardedTransformation(optimizer.init, update)


def _by_student(metrics: Metrics, count: int) -> Metrics:
    """(sum [n], count [n]) apart, under names of their own."""
    apart: Metrics = {
        f"{index}/{name}": (total[index], number[index])
        for index in range(count)
        for name, (total, number) in metrics.items()
    }
    apart["loss"] = jax.tree.map(jnp.sum, metrics["loss"])
    skipped, _ = metrics["skipped"]
    return apart | {"skipped": (jnp.min(skipped), jnp.float32(1))}
