"""Loss terms: each says which signals it reads, which positions it counts, and what it sums over them.

A term never divides: the objective divides its sum by the count over the *whole* batch, which is what makes any split
of the batch into micro-batches or devices add up to the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

import jax.numpy as jnp

from jaxdistill import losses
from jaxdistill.config.loss_schema import (
    CrossEntropyTerm,
    DivergenceTerm,
    JensenShannonTerm,
    LogitMSETerm,
    TermConfig,
    TotalVariationTerm,
    ZLossTerm,
)
from jaxdistill.typing import Array, Batch, Bool, Float, Scalar, Signals

IGNORED_LABEL = -100


def real_examples(batch: Batch) -> Bool[Array, " B"]:
    """Which rows hold an example; filler rows have example_id −1."""
    return batch["example_id"] >= 0


def labelled(batch: Batch) -> Bool[Array, "*B"]:
    """Which rows, or which tokens of them, carry a label."""
    return batch["labels"] != IGNORED_LABEL


def learned(batch: Batch) -> Bool[Array, "*B"]:
    """Which positions a teacher teaches: every real row of a classifier, every token that has a label otherwise."""
    return real_examples(batch) if batch["labels"].ndim == 1 else labelled(batch)


class Term(Protocol):
    """One weighted part of the loss. Terms are immutable and hashable.

    Attributes:
      name: the metric's name, unique after `make_objective` (`forward_kl`, `forward_kl_2`, …).
      group: `kd` if it reads a teacher, else `ce`.
      weight: its factor in the loss.
      student_outputs, teacher_outputs: the signals it reads, by the names `Model.apply` knows.
    """

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> Literal["kd", "ce"]: ...
    @property
    def weight(self) -> float: ...
    @property
    def student_outputs(self) -> tuple[str, ...]: ...
    @property
    def teacher_outputs(self) -> tuple[str, ...]: ...

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        """The positions this term counts; it depends on the batch alone, never on a model."""
        ...

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        """The unweighted sum over those positions, float32."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels, over the rows that have one."""

    name: str
    weight: float
    label_smoothing: float = 0.0
    group: Literal["ce"] = "ce"
    student_outputs: tuple[str, ...] = ("logits",)
    teacher_outputs: tuple[str, ...] = ()

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return labelled(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        values = losses.cross_entropy(
            student["logits"],
            batch["labels"],
            label_smoothing=self.label_smoothing,
            ignore_index=IGNORED_LABEL,
            where=where,
        )
        return losses.masked_sum_count(values, where)[0]


_AT_TEMPERATURE = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "soft_cross_entropy": losses.soft_cross_entropy,
    "total_variation": losses.total_variation,
}


@dataclass(frozen=True)
class LogitDivergence:
    """A divergence between the student's and the teachers' averaged distributions at `temperature`, over real rows.

    divergence is the loss's name in `jaxdistill.losses`; beta is the Jensen-Shannon divergence's, None elsewhere.
    """

    name: str
    weight: float
    divergence: Literal["forward_kl", "reverse_kl", "soft_cross_entropy", "jensen_shannon", "total_variation"]
    temperature: float
    teacher_weights: tuple[float, ...]
    beta: float | None = None
    group: Literal["kd"] = "kd"
    student_outputs: tuple[str, ...] = ("logits",)
    teacher_outputs: tuple[str, ...] = ("logits",)

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return learned(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        logits, target = student["logits"], self._target(teachers)
        if self.divergence == "jensen_shannon":
            assert self.beta is not None
            values = losses.jensen_shannon(logits, target, beta=self.beta, temperature=self.temperature, where=where)
        else:
            values = _AT_TEMPERATURE[self.divergence](logits, target, temperature=self.temperature, where=where)
        return losses.masked_sum_count(values, where)[0]

    def _target(self, teachers: Sequence[Signals]) -> Float[Array, "*B C"]:
        """Logits whose softmax at `temperature` is the weighted mean of the teachers' probabilities there."""
        logits = [teacher["logits"] for teacher in teachers]
        if len(logits) == 1:
            return logits[0]
        return losses.mixture_logits(logits, weights=self.teacher_weights, temperature=self.temperature)


@dataclass(frozen=True)
class LogitMSE:
    """Mean squared error between the student's logits and the weighted mean of the teachers', over real rows."""

    name: str
    weight: float
    teacher_weights: tuple[float, ...]
    group: Literal["kd"] = "kd"
    student_outputs: tuple[str, ...] = ("logits",)
    teacher_outputs: tuple[str, ...] = ("logits",)

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return learned(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        logits = jnp.stack([teacher["logits"].astype(jnp.float32) for teacher in teachers])
        shares = jnp.asarray(self.teacher_weights, jnp.float32) / sum(self.teacher_weights)
        target = jnp.sum(shares.reshape(-1, *(1,) * (logits.ndim - 1)) * logits, axis=0)
        return losses.masked_sum_count(losses.logit_mse(student["logits"], target, where=where), where)[0]


@dataclass(frozen=True)
class ZLoss:
    """The square of the student's log-normaliser, over the positions that are learned from."""

    name: str
    weight: float
    group: Literal["ce"] = "ce"
    student_outputs: tuple[str, ...] = ("logits",)
    teacher_outputs: tuple[str, ...] = ()

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return learned(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        return losses.masked_sum_count(losses.z_loss(student["logits"], where=where), where)[0]


def make_term(config: TermConfig, *, name: str, teacher_weights: tuple[float, ...]) -> Term:
    """The term a configuration describes; `teacher_weights` has one positive number per teacher."""
    match config:
        case CrossEntropyTerm():
            return CrossEntropy(name=name, weight=config.weight, label_smoothing=config.label_smoothing)
        case DivergenceTerm() | TotalVariationTerm() | JensenShannonTerm():
            return LogitDivergence(
                name=name,
                weight=config.weight,
                divergence=config.type,
                temperature=config.temperature,
                teacher_weights=teacher_weights,
                beta=config.beta if isinstance(config, JensenShannonTerm) else None,
            )
        case LogitMSETerm():
            return LogitMSE(name=name, weight=config.weight, teacher_weights=teacher_weights)
        case ZLossTerm():
            return ZLoss(name=name, weight=config.weight)
    assert_never(config)
