"""The objective of a stage: weighted loss terms, the signals they need, and the metrics they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from jaxdistill.config.loss_schema import TermConfig
from jaxdistill.distill.terms import Term, labelled, make_term, real_examples
from jaxdistill.errors import ConfigError
from jaxdistill.typing import Array, Batch, Bool, Scalar, Signals

Metrics = dict[str, tuple[Scalar, Scalar]]
"""Metrics as (sum, count): they add up over micro-batches, devices and steps; the mean is sum / count."""

_EXAMPLES = "examples"


@dataclass(frozen=True)
class Objective:
    """loss = Σ weight · sum_term / count_term, with every count taken over the whole batch.

    A part of the batch (a micro-batch, a device's share) gives its additive share of the loss, because `counts` are
    those of the whole: the shares, and their gradients, sum to the loss of the batch whatever the split.
    """

    terms: tuple[Term, ...]

    @property
    def student_outputs(self) -> tuple[str, ...]:
        """Signals the student must produce: the union of what the terms read."""
        return _union(term.student_outputs for term in self.terms)

    @property
    def teacher_outputs(self) -> tuple[str, ...]:
        """Signals every teacher must produce; empty if no term reads a teacher."""
        return _union(term.teacher_outputs for term in self.terms)

    def counts(self, batch: Batch) -> dict[str, Scalar]:
        """Positions counted by each term, and `examples`, the real rows: int32 []; over devices they add up."""
        counts = {term.name: _count(term.where(batch)) for term in self.terms}
        return counts | {_EXAMPLES: _count(real_examples(batch))}

    def __call__(
        self, student: Signals, teachers: Sequence[Signals], batch: Batch, *, counts: Mapping[str, Scalar]
    ) -> tuple[Scalar, Metrics]:
        """The loss of `batch`, or its share if `batch` is a part of what was counted.

        Args:
          student: the student's signals.
          teachers: the signals of each teacher, under stop_gradient.
          batch: the rows the signals belong to.
          counts: `counts` of the whole batch.

        Returns:
          (loss float32 [], metrics): each metric a (sum, count). `loss` = `kd` + `ce`, the weighted distillation and
          label terms; each term, unweighted, under its own name; `accuracy` over labelled rows where the student
          gives logits for a whole row.
        """
        loss: dict[str, Scalar] = {}
        metrics: Metrics = {}
        for term in self.terms:
            total = term.total(student, teachers, batch)
            share = term.weight * total / jnp.maximum(counts[term.name], 1).astype(jnp.float32)
            loss[term.group] = loss[term.group] + share if term.group in loss else share
            metrics[term.name] = (total, _float_count(term.where(batch)))
        value = sum(loss.values(), start=jnp.float32(0))
        # weighing each batch's loss by its examples makes a mean over many batches one over examples
        examples = counts[_EXAMPLES].astype(jnp.float32)
        here = _float_count(real_examples(batch))
        metrics["loss"] = (value * examples, here)
        metrics |= {group: (part * examples, here) for group, part in loss.items()}
        if "logits" in student:
            metrics["accuracy"] = _accuracy(student["logits"], batch)
        return value, metrics


def make_objective(term_configs: Sequence[TermConfig], teacher_weights: Sequence[float] = ()) -> Objective:
    """The objective of a list of terms against teachers of the given weights (none: labels alone).

    A term of weight 0 is dropped here, and so costs nothing. Terms of the same type are numbered from the second on.

    Raises:
      ConfigError: no term is left, or a term needs a teacher and there is none.
    """
    build = partial(make_term, teacher_weights=tuple(float(weight) for weight in teacher_weights))
    seen: Counter[str] = Counter()
    terms = []
    for config in term_configs:
        if config.weight == 0:
            continue
        seen[config.type] += 1
        name = config.type if seen[config.type] == 1 else f"{config.type}_{seen[config.type]}"
        term = build(config, name=name)
        if term.teacher_outputs and not teacher_weights:
            raise ConfigError(
                f"loss: {config.type} compares with a teacher, but this stage has none; "
                "give it a `teacher:` or use cross_entropy alone"
            )
        terms.append(term)
    if not terms:
        raise ConfigError("loss: no term with a weight above 0; a stage needs at least one")
    return Objective(tuple(terms))


def _union(groups) -> tuple[str, ...]:
    """Distinct names in order of first appearance."""
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _count(where: Bool[Array, "*B"]) -> Scalar:
    """Number of counted positions, exact in int32 where float32 would round above 2²⁴."""
    return jnp.sum(where, dtype=jnp.int32)


def _float_count(where: Bool[Array, "*B"]) -> Scalar:
    return _count(where).astype(jnp.float32)


def _accuracy(logits: Array, batch: Batch) -> tuple[Scalar, Scalar]:
    """(correct, labelled) rows."""
    where = labelled(batch)
    return _float_count(where & (jnp.argmax(logits, -1) == batch["labels"])), _float_count(where)
