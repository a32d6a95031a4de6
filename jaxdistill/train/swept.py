"""Several students of one shape in one compiled step: one teacher forward, and a `vmap` over the students.

Whatever depends on the batch and the teacher alone is not batched by `vmap`, and so is computed once. What tells the
students apart is their state, stacked on a leading axis; numbers of the loss and of the optimizer are part of it, so
that students of other numbers are trained by the same compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.distill.objective import Metrics, Objective
from jaxdistill.errors import ConfigError
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.train.program import StepProgram
from jaxdistill.train.state import TrainState
from jaxdistill.typing import Batch, Params, Scalar

Numbers = dict[str, dict[str, Any]]
"""By a term's name, what differs of it between n students (`weight`, `temperature`): float32 [n] each."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SweptState(TrainState):
    """A student's state, and the numbers by which it is trained; of n students, all of it stacked on a leading axis.

    Attributes:
      numbers: float32 [], of the loss's terms; they are put in the place of the objective's own.
      rate: float32 [], its learning rate as a multiple of the optimizer's.
    """

    numbers: Numbers = field(default_factory=dict)
    rate: Any = 1.0

    @classmethod
    def stacked(cls, states: Sequence[TrainState], numbers: Numbers, rates: Sequence[float]) -> SweptState:
        """The state of n students, from each one's own."""
        whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        own = {each.name: getattr(whole, each.name) for each in fields(TrainState)}
        return cls(**own, numbers=numbers, rate=jnp.asarray(rates, jnp.float32))


@dataclass(frozen=True)
class SweptProgram(StepProgram):
    """The step of students whose objectives and learning rates differ in the numbers of their `SweptState` alone."""

    def run(
        self, state: TrainState, teacher_params: Sequence[Params], batch: Batch, **how: Any
    ) -> tuple[TrainState, Metrics]:
        """One update of every student; `state` is a `SweptState` of n students.

        The metrics of student i begin with `i/`; `loss` is that of all, and `skipped` counts where all were.
        """
        assert isinstance(state, SweptState)

        def one(state: SweptState) -> tuple[TrainState, Metrics]:
            objective, optimizer = with_numbers(self.objective, state.numbers), _at_rate(self.optimizer, state.rate)
            program = StepProgram(self.student, self.teachers, objective, optimizer, self.accumulate)
            return program.run(state, teacher_params, batch, **how)

        advanced, metrics = jax.vmap(one)(state)
        return advanced, _by_student(metrics, state.rate.shape[0])


def with_numbers(objective: Objective, numbers: Mapping[str, Mapping[str, Any]]) -> Objective:
    """The objective with numbers in its terms, which may be traced."""

    def changed(terms: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(replace(term, **numbers.get(term.name, {})) for term in terms)

    fused = None if objective.fused is None else replace(objective.fused, terms=changed(objective.fused.terms))
    return replace(objective, terms=changed(objective.terms), fused=fused)


@dataclass(frozen=True)
class CommonObjective:
    """One objective for many: with every term that any of them has, and what of its terms they may have otherwise.

    varying: names of terms, each with its fields (`weight`, `temperature`) that differ.
    """

    objective: Objective
    varying: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, objectives: Sequence[Objective]) -> CommonObjective:
        """What several objectives have in common.

        Raises:
          ConfigError: none has all terms.
        """
        every = [_terms(objective) for objective in objectives]
        names = set().union(*every)
        base = next((place for place, own in enumerate(every) if set(own) == names), None)
        if base is None:
            raise ConfigError("sweep: no combination has every term of the loss; give one in which no weight is 0")
        differing = (
            (name, tuple(key for key in _NUMBERS if len({_number_of(own, term, key) for own in every}) > 1))
            for name, term in every[base].items()
        )
        return cls(objectives[base], tuple((name, keys) for name, keys in differing if keys))

    def numbers(self, objectives: Sequence[Objective]) -> Numbers:
        """Those of n of the objectives; a term that one of them lacks has weight 0 there."""
        reference, every = _terms(self.objective), [_terms(objective) for objective in objectives]
        return {
            name: {
                key: jnp.asarray([_number_of(own, reference[name], key) for own in every], jnp.float32) for key in keys
            }
            for name, keys in self.varying
        }


_NUMBERS = ("weight", "temperature")


def _terms(objective: Objective) -> dict[str, Any]:
    return {term.name: term for term in objective.every_term}


def _number_of(own: Mapping[str, Any], reference: Any, key: str) -> Any:
    """A number of the term that the reference is the same of; None if such terms have none."""
    if reference.name in own:
        return getattr(own[reference.name], key, None)
    return 0.0 if key == "weight" else getattr(reference, key, None)


def student_of(tree: Any, index: int) -> Any:
    """One student's part of a tree that is stacked."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _at_rate(optimizer: GuardedTransformation, rate: Scalar) -> GuardedTransformation:
    """The optimizer with another learning rate: AdamW's update, decay included, is proportional to it."""

    def update(*arguments: Any, **named: Any) -> Any:
        updates, state = optimizer.update(*arguments, **named)
        return jax.tree.map(lambda change: rate * change, updates), state

    return optimizer._replace(update=update)


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
