"""Loss terms: each says which signals it reads, which positions it counts, and what it sums over them.

A term never divides: the objective divides its sum by the count over the *whole* batch, which is what makes any split
of the batch into micro-batches or devices add up to the same loss. Terms on labels and logits are here, those on what
lies between in `feature_terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax.numpy as jnp

from jaxdistill import losses
from jaxdistill.config.loss_schema import (
    CorrelationTerm,
    CrossEntropyTerm,
    DecoupledTerm,
    DivergenceTerm,
    JensenShannonTerm,
    LogitMSETerm,
    SkewedKLTerm,
    TAIDTerm,
    TermConfig,
    TotalVariationTerm,
    ZLossTerm,
)
from jaxdistill.config.schema import TeacherChoice
from jaxdistill.distill.feature_terms import make_feature_term
from jaxdistill.distill.positions import IGNORED_LABEL, labelled, learned
from jaxdistill.distill.schedules import Scheduled, make_schedule, number
from jaxdistill.distill.signals import LOGITS, Wanted
from jaxdistill.typing import Array, Batch, Bool, Float, Scalar, Signals


class Term(Protocol):
    """One weighted part of the loss. Terms are immutable and hashable.

    Attributes:
      name: the metric's name, unique after `make_objective` (`forward_kl`, `forward_kl_2`, …).
      group: `kd` if it reads a teacher, else `ce`.
      weight: its factor in the loss. It and whatever else is a schedule has been evaluated (`at_step`) before `total`.
      student_outputs, teacher_outputs: the signals it reads, by the names `Model.apply` knows; of each teacher its own.
      coupled: whether it compares the examples of a batch with one another, and so is no sum that could be split.
    """

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> Literal["kd", "ce"]: ...
    @property
    def weight(self) -> Scheduled: ...
    @property
    def student_outputs(self) -> Wanted: ...
    @property
    def teacher_outputs(self) -> tuple[Wanted, ...]: ...
    @property
    def coupled(self) -> bool: ...

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        """The positions this term counts; it depends on the batch alone, never on a model."""
        ...

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        """The unweighted sum over those positions, float32.

        Signals of several layers are {layer: array}; the student's `projections` are {term: {teacher: matrices}}.
        """
        ...


# --- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy with the labels, over the rows that have one."""

    name: str
    weight: Scheduled
    label_smoothing: float = 0.0
    group: Literal["ce"] = "ce"
    student_outputs: Wanted = LOGITS
    teacher_outputs: tuple[Wanted, ...] = ()
    coupled: Literal[False] = False

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


@dataclass(frozen=True, kw_only=True)
class ZLoss:
    """The square of the student's log-normaliser, over the positions that are learned from."""

    name: str
    weight: Scheduled
    group: Literal["ce"] = "ce"
    student_outputs: Wanted = LOGITS
    teacher_outputs: tuple[Wanted, ...] = ()
    coupled: Literal[False] = False

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return learned(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        return losses.masked_sum_count(losses.z_loss(student["logits"], where=where), where)[0]


# --- teachers' logits ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _AgainstLogits:
    """What terms between the student's and the teachers' logits share; they count the positions that are learned.

    teacher_choice: several teachers are averaged, or each position learns from the most confident one.
    """

    name: str
    weight: Scheduled
    teacher_weights: tuple[float, ...]
    teacher_choice: TeacherChoice = "average"
    group: Literal["kd"] = "kd"
    student_outputs: Wanted = LOGITS
    coupled: bool = False

    @property
    def teacher_outputs(self) -> tuple[Wanted, ...]:
        return (LOGITS,) * len(self.teacher_weights)

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return learned(batch)

    def _target(self, teachers: Sequence[Signals], temperature: Any) -> Float[Array, "*B C"]:
        """Logits whose softmax at `temperature` is what the teachers say together."""
        logits = [teacher["logits"] for teacher in teachers]
        if len(logits) == 1:
            return logits[0]
        if self.teacher_choice == "confidence":
            return losses.most_confident_logits(logits)
        return losses.mixture_logits(logits, weights=self.teacher_weights, temperature=temperature)


_AT_TEMPERATURE = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "soft_cross_entropy": losses.soft_cross_entropy,
    "total_variation": losses.total_variation,
}


@dataclass(frozen=True, kw_only=True)
class LogitDivergence(_AgainstLogits):
    """A divergence between the student's and the teachers' averaged distributions at `temperature`.

    divergence is the loss's name in `jaxdistill.losses`; beta is the Jensen-Shannon divergence's, None elsewhere.
    """

    divergence: Literal["forward_kl", "reverse_kl", "soft_cross_entropy", "jensen_shannon", "total_variation"]
    temperature: Scheduled
    beta: float | None = None

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, temperature = self.where(batch), number(self.temperature)
        logits, target = student["logits"], self._target(teachers, temperature)
        if self.divergence == "jensen_shannon":
            assert self.beta is not None
            values = losses.jensen_shannon(logits, target, beta=self.beta, temperature=temperature, where=where)
        else:
            values = _AT_TEMPERATURE[self.divergence](logits, target, temperature=temperature, where=where)
        return losses.masked_sum_count(values, where)[0]


@dataclass(frozen=True, kw_only=True)
class SkewedKL(_AgainstLogits):
    """KL between the teachers' averaged distribution and its mixture with the student's."""

    skew: float
    temperature: Scheduled

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, temperature = self.where(batch), number(self.temperature)
        target = self._target(teachers, temperature)
        values = losses.skewed_kl(student["logits"], target, skew=self.skew, temperature=temperature, where=where)
        return losses.masked_sum_count(values, where)[0]


@dataclass(frozen=True, kw_only=True)
class TAID(_AgainstLogits):
    """KL to logits on the way from the student's own to the teachers' averaged ones, `progress` of it done."""

    progress: Scheduled
    temperature: Scheduled

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, temperature = self.where(batch), number(self.temperature)
        values = losses.taid(
            student["logits"],
            self._target(teachers, temperature),
            progress=number(self.progress),
            temperature=temperature,
            where=where,
        )
        return losses.masked_sum_count(values, where)[0]


@dataclass(frozen=True, kw_only=True)
class DecoupledKL(_AgainstLogits):
    """The label's part and the other classes' part of the KL, each with its own weight, over labelled positions."""

    target_weight: float
    other_weight: float
    temperature: Scheduled

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return labelled(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, temperature = self.where(batch), number(self.temperature)
        values = losses.dkd(
            student["logits"],
            self._target(teachers, temperature),
            batch["labels"],
            target_weight=self.target_weight,
            other_weight=self.other_weight,
            temperature=temperature,
            ignore_index=IGNORED_LABEL,
            where=where,
        )
        return losses.masked_sum_count(values, where)[0]


@dataclass(frozen=True, kw_only=True)
class Correlation(_AgainstLogits):
    """Correlations between classes and, over the batch, between positions; a part of a batch sees only its own."""

    inter_weight: float
    intra_weight: float
    temperature: Scheduled
    coupled: bool = True

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, temperature = self.where(batch), number(self.temperature)
        value = losses.dist(
            student["logits"],
            self._target(teachers, temperature),
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            temperature=temperature,
            where=where,
        )
        return value * jnp.sum(where, dtype=jnp.int32).astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class LogitMSE(_AgainstLogits):
    """Mean squared error between the student's logits and the weighted mean of the teachers', or the chosen one's."""

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        logits = [teacher["logits"].astype(jnp.float32) for teacher in teachers]
        if self.teacher_choice == "confidence":
            target = losses.most_confident_logits(logits)
        else:
            shares = jnp.asarray(self.teacher_weights, jnp.float32) / sum(self.teacher_weights)
            stacked = jnp.stack(logits)
            target = jnp.sum(shares.reshape(-1, *(1,) * (stacked.ndim - 1)) * stacked, axis=0)
        return losses.masked_sum_count(losses.logit_mse(student["logits"], target, where=where), where)[0]


# --- from the configuration ------------------------------------------------------------------------------------------


def make_term(
    config: TermConfig,
    *,
    name: str,
    teacher_weights: tuple[float, ...],
    depths: Sequence[int] = (),
    widths: Sequence[int] = (),
    total_steps: int | None = None,
    teacher_choice: TeacherChoice = "average",
) -> Term:
    """The term a configuration describes.

    Args:
      config: what was written.
      name: of its metric.
      teacher_weights: one positive number per teacher.
      depths: layers of the student, then of each teacher; only terms that read layers need them.
      widths: of their hidden states; only terms with projections need them.
      total_steps: of the stage; only schedules in shares of it need them.
      teacher_choice: terms on logits average several teachers, or take the most confident one at each position.

    Raises:
      ConfigError: layers that a model does not have, or depths, widths or steps that are needed and not given.
    """
    weight, temperature = (
        make_schedule(getattr(config, key, 1.0), total_steps=total_steps) for key in ("weight", "temperature")
    )
    alone: dict[str, Any] = {"name": name, "weight": weight}
    against: dict[str, Any] = alone | {"teacher_weights": teacher_weights, "teacher_choice": teacher_choice}
    match config:
        case CrossEntropyTerm():
            return CrossEntropy(**alone, label_smoothing=config.label_smoothing)
        case ZLossTerm():
            return ZLoss(**alone)
        case DivergenceTerm() | TotalVariationTerm():
            return LogitDivergence(**against, divergence=config.type, temperature=temperature)
        case JensenShannonTerm():
            return LogitDivergence(**against, divergence=config.type, temperature=temperature, beta=config.beta)
        case LogitMSETerm():
            return LogitMSE(**against)
        case SkewedKLTerm():
            return SkewedKL(**against, skew=config.skew, temperature=temperature)
        case TAIDTerm():
            progress = make_schedule(config.progress, total_steps=total_steps)
            return TAID(**against, progress=progress, temperature=temperature)
        case DecoupledTerm():
            return DecoupledKL(
                **against,
                target_weight=config.target_weight,
                other_weight=config.other_weight,
                temperature=temperature,
            )
        case CorrelationTerm():
            return Correlation(
                **against, inter_weight=config.inter_weight, intra_weight=config.intra_weight, temperature=temperature
            )
        case _:
            own = {"teacher_weights": teacher_weights, "temperature": temperature}
            return make_feature_term(config, **alone, **own, depths=depths, widths=widths)
