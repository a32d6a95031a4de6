"""What may be written about a loss: weighted terms, or a published recipe by name."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from jaxdistill.config.numbers import STRICT, Fraction, NonNegativeFloat, Number, PositiveFloat


@dataclass(frozen=True)
class CrossEntropyTerm:
    """Cross-entropy with the labels."""

    __pydantic_config__ = STRICT
    type: Literal["cross_entropy"]
    weight: NonNegativeFloat = 1.0
    label_smoothing: Fraction = 0.0


@dataclass(frozen=True)
class DivergenceTerm:
    """T² times a divergence between the teacher's and the student's distributions at temperature T."""

    __pydantic_config__ = STRICT
    type: Literal["forward_kl", "reverse_kl", "soft_cross_entropy"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0


@dataclass(frozen=True)
class JensenShannonTerm:
    """T² times the generalised Jensen-Shannon divergence; beta 0 means forward KL, 1 reverse KL."""

    __pydantic_config__ = STRICT
    type: Literal["jensen_shannon"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0
    beta: Annotated[Number, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class TotalVariationTerm:
    """Total variation distance at temperature T (not multiplied by T²)."""

    __pydantic_config__ = STRICT
    type: Literal["total_variation"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0


@dataclass(frozen=True)
class LogitMSETerm:
    """Mean squared error of the raw logits (no temperature)."""

    __pydantic_config__ = STRICT
    type: Literal["logit_mse"]
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class ZLossTerm:
    """Square of the student's log-normaliser, which keeps logits from drifting (arXiv:2204.02311)."""

    __pydantic_config__ = STRICT
    type: Literal["z_loss"]
    weight: NonNegativeFloat = 1e-4


TermConfig = Annotated[
    CrossEntropyTerm | DivergenceTerm | JensenShannonTerm | TotalVariationTerm | LogitMSETerm | ZLossTerm,
    Field(discriminator="type"),
]


@dataclass(frozen=True)
class HintonPreset:
    """alpha·T²·KL(teacher ‖ student) + (1−alpha)·CE (arXiv:1503.02531); `txtai` is the same with T=1, alpha=1."""

    __pydantic_config__ = STRICT
    preset: Literal["hinton", "txtai"]
    temperature: PositiveFloat | None = None
    alpha: Annotated[Number, Field(ge=0, le=1)] | None = None


LossConfig = tuple[TermConfig, ...] | HintonPreset
