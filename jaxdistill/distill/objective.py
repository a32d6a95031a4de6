"""The objective of a stage: weighted loss terms, the signals they need, and the metrics they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.config.loss_schema import TermConfig
from jaxdistill.config.schema import TeacherChoice
from jaxdistill.distill.feature_terms import Contrastive, Patient, States
from jaxdistill.distill.fused import FusedTerms, unfusable
from jaxdistill.distill.positions import labelled, learned
from jaxdistill.distill.projections import Projections, teacher_name
from jaxdistill.distill.schedules import always_zero, at_step, number
from jaxdistill.distill.signals import Request, by_layer, union
from jaxdistill.distill.terms import Term, make_term
from jaxdistill.distill.top_k_terms import make_top_k_term
from jaxdistill.errors import ConfigError
from jaxdistill.typing import Array, Batch, Bool, Params, Scalar, Signals

Metrics = dict[str, tuple[Scalar, Scalar]]
"""Metrics as (sum, count): they add up over micro-batches, devices and steps; the mean is sum / count."""

_EXAMPLES = "examples"


@dataclass(frozen=True)
class Objective:
    """loss = Σ weight · sum_term / count_term, with every count taken over the whole batch.

    A part of the batch (a micro-batch, a device's share) gives its additive share of the loss, because `counts` are
    those of the whole: the shares, and their gradients, sum to the loss of the batch whatever the split (unless the
    objective is `coupled`, where the rest of the batch is missed).

    fused: terms that are computed together from hidden states (None: each is computed from logits). vocab_size: logits
    beyond so many classes are padding (None: none are).
    """

    terms: tuple[Term, ...]
    fused: FusedTerms | None = None
    vocab_size: int | None = None

    @property
    def student_outputs(self) -> Request:
        """Signals the student must produce, with the layers of each: the union of what the terms read."""
        return union(part.student_outputs for part in (*self.terms, *self._fused))

    @property
    def teacher_outputs(self) -> Request:
        """Signals that are read of any teacher, with all layers; empty if no term reads one."""
        return union(wanted for part in (*self.terms, *self._fused) for wanted in part.teacher_outputs)

    def outputs_of(self, teacher: int) -> Request:
        """Signals that teacher must produce: with several of different depths, each its own layers."""
        parts = [part for part in (*self.terms, *self._fused) if part.teacher_outputs]
        return union(part.teacher_outputs[teacher] for part in parts)

    @property
    def projections(self) -> Projections:
        """The matrices that are learned beside the student, of each term that has any: shapes, by term and teacher."""
        return {
            term.name: {teacher_name(index): each for index, each in enumerate(term.projections)}
            for term in self.terms
            if isinstance(term, States | Patient | Contrastive) and term.projections
        }

    @property
    def coupled(self) -> bool:
        """Whether a term compares the examples of a batch with one another, so that no part of it gives its share."""
        return any(term.coupled for term in self.every_term)

    @property
    def _fused(self) -> tuple[FusedTerms, ...]:
        return () if self.fused is None else (self.fused,)

    @property
    def every_term(self) -> tuple[Term, ...]:
        """All terms, fused or not."""
        return (*self.terms, *(term for part in self._fused for term in part.terms))

    def counts(self, batch: Batch) -> dict[str, Scalar]:
        """Positions counted by each term, and `examples`, what metrics are averaged over: int32 []; they add up."""
        counts = {term.name: _count(term.where(batch)) for term in self.every_term}
        return counts | {_EXAMPLES: _count(learned(batch))}

    def __call__(
        self,
        student: Signals,
        teachers: Sequence[Signals],
        batch: Batch,
        *,
        counts: Mapping[str, Scalar],
        mesh: Mesh | None = None,
        step: Scalar | None = None,
        projections: Params | None = None,
    ) -> tuple[Scalar, Metrics]:
        """The loss of `batch`, or its share if `batch` is a part of what was counted.

        Args:
          student: the student's signals.
          teachers: the signals of each teacher (`outputs_of`), under stop_gradient.
          batch: the rows the signals belong to.
          counts: `counts` of the whole batch.
          mesh: devices that the signals are spread over under `jit`; None if they are all here.
          step: number of updates before this one, int32 []; only weights and temperatures with a schedule need it.
          projections: the learned matrices, as `init_projections(self.projections, key)` makes them.

        Returns:
          (loss float32 [], metrics): each metric a (sum, count). `loss` = `kd` + `ce`, the weighted distillation and
          label terms; each term, unweighted, under its own name; `accuracy` over labelled positions where the student
          gives logits.

        Raises:
          ValueError: other signals or projections came than were asked for, or the loss changes with the step and there
            is none.
        """
        self._check_projections(projections or {})
        student = {**self._read(student, self.student_outputs), "projections": projections}
        teachers = [self._read(signals, self.outputs_of(index)) for index, signals in enumerate(teachers)]
        now = self._at(step)
        value, totals = jnp.float32(0), {}
        for term in now.terms:
            totals[term.name] = term.total(student, teachers, batch)
            value += self._share(term, totals, counts)
        if now.fused is not None:
            together, sums = now.fused(student, teachers, batch, counts=counts, mesh=mesh)
            value, totals = value + together, totals | sums
        metrics: Metrics = {}
        loss: dict[str, Scalar] = {}
        for term in now.every_term:
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

    def _check_projections(self, given: Params) -> None:
        """Raise ValueError unless they are those of the terms."""
        expected = {term: {name: each.shape for name, each in own.items()} for term, own in self.projections.items()}
        found = {term: {name: tuple(each.shape) for name, each in own.items()} for term, own in given.items()}
        if found != expected:
            raise ValueError(
                f"the loss projects by {expected}, got {found}; make the state with init_state(..., "
                "projections=objective.projections)"
            )

    def _share(self, term: Term, totals: Mapping[str, Scalar], counts: Mapping[str, Scalar]) -> Scalar:
        """A term's weighted part of the loss."""
        return number(term.weight) * totals[term.name] / jnp.maximum(counts[term.name], 1).astype(jnp.float32)

    def _at(self, step: Scalar | None) -> Objective:
        """The objective with numbers in the place of schedules."""
        fused = None if self.fused is None else replace(self.fused, terms=_at_step(self.fused.terms, step))
        return replace(self, terms=_at_step(self.terms, step), fused=fused)

    def _read(self, signals: Signals, request: Request) -> Signals:
        """Layers told apart, and logits without the columns of a padded vocabulary."""
        signals = by_layer(signals, request)
        if self.vocab_size is None or "logits" not in signals:
            return signals
        return {**signals, "logits": signals["logits"][..., : self.vocab_size]}


def make_objective(
    term_configs: Sequence[TermConfig],
    teacher_weights: Sequence[float] = (),
    *,
    fused: Literal["auto", "on", "off"] = "off",
    vocab_size: int | None = None,
    depths: Sequence[int] = (),
    widths: Sequence[int] = (),
    total_steps: int | None = None,
    stored_temperatures: Sequence[float] | None = None,
    teacher_choice: TeacherChoice = "average",
) -> Objective:
    """The objective of a list of terms against teachers of the given weights (none: labels alone).

    A term whose weight is 0 at every step is dropped here, and so costs nothing. Terms of the same type are numbered
    from the second on.

    Args:
      term_configs: the terms.
      teacher_weights: one positive number per teacher.
      fused: compute the terms on logits of a language model together from hidden states, so that no [tokens, vocab]
        array exists: `on`, `off`, or `auto` (where all of them can be).
      vocab_size: classes of a padded vocabulary (None: every column of the logits is one).
      depths: layers of the student, then of each teacher; only terms that read layers need them.
      widths: of their hidden states; only terms with projections need them.
      total_steps: of the stage; only schedules in shares of it need them.
      stored_temperatures: the teacher's most probable classes alone are there (`StoredTeacher`), with the
        log-normaliser at these temperatures; None: all its logits are.
      teacher_choice: terms on logits average several teachers' probabilities, or take the most confident teacher at
        each position (which cannot be fused).

    Raises:
      ConfigError: no term is left, a term needs a teacher and there is none, `on` with terms that cannot be fused,
        layers that a model does not have, or depths, widths or steps that are needed and not given.
    """
    weights = tuple(float(weight) for weight in teacher_weights)
    build = partial(
        make_term,
        teacher_weights=weights,
        depths=depths,
        widths=widths,
        total_steps=total_steps,
        teacher_choice=teacher_choice,
    )
    seen: Counter[str] = Counter()
    terms = []
    for config in term_configs:
        if always_zero(config.weight):
            continue
        seen[config.type] += 1
        name = config.type if seen[config.type] == 1 else f"{config.type}_{seen[config.type]}"
        term = build(config, name=name)
        if term.group == "kd" and stored_temperatures is not None:
            stored = tuple(stored_temperatures)
            term = make_top_k_term(config, name=name, stored_temperatures=stored, total_steps=total_steps)
        if term.group == "kd" and not teacher_weights:
            raise ConfigError(
                f"loss: {config.type} compares with a teacher, but this stage has none; "
                "give it a `teacher:` or use cross_entropy alone"
            )
        terms.append(term)
    if not terms:
        raise ConfigError("loss: no term with a weight above 0; a stage needs at least one")
    on_logits = [term for term in terms if "logits" in dict(term.student_outputs)]
    reason = unfusable(on_logits)
    if fused == "on" and reason is not None:
        raise ConfigError(f"fused: on, but {reason}; leave it out, or change the loss")
    if fused == "off" or reason is not None or not on_logits:
        return Objective(tuple(terms), vocab_size=vocab_size)
    others = tuple(term for term in terms if term not in on_logits)
    return Objective(others, FusedTerms(tuple(on_logits), vocab_size), vocab_size)


def _at_step(terms: tuple[Term, ...], step: Scalar | None) -> tuple[Term, ...]:
    return tuple(at_step(term, step) for term in terms)


def _count(where: Bool[Array, "*B"]) -> Scalar:
    """Number of counted positions, exact in int32 where float32 would round above 2²⁴."""
    return jnp.sum(where, dtype=jnp.int32)


def _float_count(where: Bool[Array, "*B"]) -> Scalar:
    return _count(where).astype(jnp.float32)


def _accuracy(logits: Array, batch: Batch) -> tuple[Scalar, Scalar]:
    """(correct, labelled) positions."""
    where = labelled(batch)
    return _float_count(where & (jnp.argmax(logits, -1) == batch["labels"])), _float_count(where)
