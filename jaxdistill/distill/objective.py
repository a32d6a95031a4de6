"""The objective of a stage: weighted loss terms, the signals they need, and the metrics they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.config.loss_schema import TermConfig
from jaxdistill.distill.fused import FusedTerms, unfusable
from jaxdistill.distill.terms import Term, labelled, learned, make_term
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

    fused: terms that are computed together from hidden states (None: each is computed from logits). vocab_size: logits
    beyond so many classes are padding (None: none are).
    """

    terms: tuple[Term, ...]
    fused: FusedTerms | None = None
    vocab_size: int | None = None

    @property
    def student_outputs(self) -> tuple[str, ...]:
        """Signals the student must produce: the union of what the terms read."""
        return _union([*(term.student_outputs for term in self.terms), *(part.student_outputs for part in self._fused)])

    @property
    def teacher_outputs(self) -> tuple[str, ...]:
        """Signals every teacher must produce; empty if no term reads a teacher."""
        return _union([*(term.teacher_outputs for term in self.terms), *(part.teacher_outputs for part in self._fused)])

    @property
    def _fused(self) -> tuple[FusedTerms, ...]:
        return () if self.fused is None else (self.fused,)

    @property
    def _every_term(self) -> tuple[Term, ...]:
        return (*self.terms, *(term for part in self._fused for term in part.terms))

    def counts(self, batch: Batch) -> dict[str, Scalar]:
        """Positions counted by each term, and `examples`, what metrics are averaged over: int32 []; they add up."""
        counts = {term.name: _count(term.where(batch)) for term in self._every_term}
        return counts | {_EXAMPLES: _count(learned(batch))}

    def __call__(
        self,
        student: Signals,
        teachers: Sequence[Signals],
        batch: Batch,
        *,
        counts: Mapping[str, Scalar],
        mesh: Mesh | None = None,
    ) -> tuple[Scalar, Metrics]:
        """The loss of `batch`, or its share if `batch` is a part of what was counted.

        Args:
          student: the student's signals.
          teachers: the signals of each teacher, under stop_gradient.
          batch: the rows the signals belong to.
          counts: `counts` of the whole batch.
          mesh: devices that the signals are spread over under `jit`; None if they are all here.

        Returns:
          (loss float32 [], metrics): each metric a (sum, count). `loss` = `kd` + `ce`, the weighted distillation and
          label terms; each term, unweighted, under its own name; `accuracy` over labelled positions where the student
          gives logits.
        """
        student, teachers = self._trimmed(student), [self._trimmed(signals) for signals in teachers]
        value, totals = jnp.float32(0), {}
        for term in self.terms:
            totals[term.name] = term.total(student, teachers, batch)
            value += self._share(term, totals, counts)
        if self.fused is not None:
            together, sums = self.fused(student, teachers, batch, counts=counts, mesh=mesh)
            value, totals = value + together, totals | sums
        metrics: Metrics = {}
        loss: dict[str, Scalar] = {}
        for term in self._every_term:
            share = self._share(term, totals, counts)
            loss[term.group] = loss[term.group] + share if term.group in loss else share
            metrics[term.name] = (totals[term.name], _float_count(term.where(batch)))
        # weighing each batch's loss by its examples makes a mean over many batches one over examples
        examples = counts[_EXAMPLES].astype(jnp.float32)
        here = _float_count(learned(batch))
        metrics["loss"] = (value * examples, here)
        metrics |= {group: (part * examples, here) for group, part in loss.items()}
        if "logits" in student:
            metrics["accuracy"] = _accuracy(student["logits"], batch)
        return value, metrics

    def _share(self, term: Term, totals: Mapping[str, Scalar], counts: Mapping[str, Scalar]) -> Scalar:
        """A term's weighted part of the loss."""
        return term.weight * totals[term.name] / jnp.maximum(counts[term.name], 1).astype(jnp.float32)

    def _trimmed(self, signals: Signals) -> Signals:
        """Logits without the columns of a padded vocabulary."""
        if self.vocab_size is None or "logits" not in signals:
            return signals
        return {**signals, "logits": signals["logits"][..., : self.vocab_size]}


def make_objective(
    term_configs: Sequence[TermConfig],
    teacher_weights: Sequence[float] = (),
    *,
    fused: Literal["auto", "on", "off"] = "off",
    vocab_size: int | None = None,
) -> Objective:
    """The objective of a list of terms against teachers of the given weights (none: labels alone).

    A term of weight 0 is dropped here, and so costs nothing. Terms of the same type are numbered from the second on.

    Args:
      term_configs: the terms.
      teacher_weights: one positive number per teacher.
      fused: compute the terms of a language model together from hidden states, so that no [tokens, vocab] array
        exists: `on`, `off`, or `auto` (where all terms can be).
      vocab_size: classes of a padded vocabulary (None: every column of the logits is one).

    Raises:
      ConfigError: no term is left, a term needs a teacher and there is none, or `on` with terms that cannot be fused.
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
    reason = unfusable(terms)
    if fused == "on" and reason is not None:
        raise ConfigError(f"fused: on, but {reason}; leave it out, or change the loss")
    if fused == "off" or reason is not None:
        return Objective(tuple(terms), vocab_size=vocab_size)
    return Objective((), FusedTerms(tuple(terms), vocab_size), vocab_size)


def _union(groups) -> tuple[str, ...]:
    """Distinct names in order of first appearance."""
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _count(where: Bool[Array, "*B"]) -> Scalar:
    """Number of counted positions, exact in int32 where float32 would round above 2²⁴."""
    return jnp.sum(where, dtype=jnp.int32)


def _float_count(where: Bool[Array, "*B"]) -> Scalar:
    return _count(where).astype(jnp.float32)


def _accuracy(logits: Array, batch: Batch) -> tuple[Scalar, Scalar]:
    """(correct, labelled) positions."""
    where = labelled(batch)
    return _float_count(where & (jnp.argmax(logits, -1) == batch["labels"])), _float_count(where)
