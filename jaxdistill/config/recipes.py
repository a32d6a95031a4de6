"""Losses written out: presets as weighted terms, and losses of several phases as one training after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxdistill.config.loss_schema import (
    LAST_LAYERS,
    AttentionKLTerm,
    AttentionMSETerm,
    CosineTerm,
    CrossEntropyTerm,
    DivergenceTerm,
    EmbeddingTerm,
    HiddenStateTerm,
    LossConfig,
    PatientTerm,
    PhaseConfig,
    PresetConfig,
    RelationTerm,
    Schedule,
    TermConfig,
)
from jaxdistill.config.schema import StageConfig, TrainConfig

PRESETS: dict[str, dict[str, Any]] = {
    "hinton": {"temperature": 2.0, "alpha": 0.7},
    "txtai": {"temperature": 1.0, "alpha": 1.0},
    "llama": {"temperature": 2.0, "alpha": 0.7},
    "distilbert": {"temperature": 2.0, "projection": "none"},
    "fitnets": {"temperature": 2.0, "alpha": 0.7, "layers": "middle", "projection": "per_pair", "share": 0.5},
    "pkd": {"temperature": 10.0, "alpha": 0.7, "beta": 500.0, "layers": "skip", "projection": "none"},
    "tinybert": {"temperature": 1.0, "layers": "uniform", "projection": "shared", "share": 0.5},
    "minilm": {"layers": LAST_LAYERS},
    "minilm_v2": {"layers": LAST_LAYERS, "relation_heads": None},
}
"""What each preset lets one change, and its own choice."""

PHASED = ("fitnets", "tinybert")
"""Presets of two phases."""


@dataclass(frozen=True)
class Phase:
    """One training that a stage consists of.

    name: None if the stage is one training alone. config: the stage as it is trained then, its `loss` this phase's.
    terms: of that loss, written out. path: where they are written, below the stage.
    """

    name: str | None
    config: StageConfig
    terms: tuple[TermConfig, ...]
    path: tuple[str | int, ...] = ("loss",)


def stage_phases(stage: StageConfig, *, has_teacher: bool) -> tuple[Phase, ...]:
    """The trainings of a stage, one after the other: one, unless its loss has phases.

    Their shares of the stage's epochs or steps are as written; those without one divide evenly what is left. Every
    phase but the last hands on the student it ends with: metrics say little before the last one.

    An incomplete configuration gives what can be made of it (`loss_checks` says what is wrong).
    """
    parts = written_phases(stage.loss)
    if not parts:
        return (Phase(None, stage, expand_loss(stage.loss, has_teacher=has_teacher)),)
    phases, begin = [], 0.0
    for index, (part, share) in enumerate(zip(parts, shares(parts), strict=True)):
        last = index == len(parts) - 1
        train = _share_of(stage.train, begin, begin + share)
        if part.learning_rate is not None:
            train = dataclasses.replace(train, learning_rate=part.learning_rate)
        checkpoint = stage.checkpoint if last else dataclasses.replace(stage.checkpoint, best="last")
        config = dataclasses.replace(stage, loss=part.terms, train=train, checkpoint=checkpoint)
        path = ("loss", index, "terms") if isinstance(stage.loss, tuple) else ("loss",)
        phases.append(Phase(part.phase, config, expand_loss(part.terms, has_teacher=has_teacher), path))
        begin += share
    return tuple(phases)


def written_phases(loss: LossConfig | None) -> tuple[PhaseConfig, ...]:
    """The phases of a loss as they are written, or as its preset means them; none if it has none."""
    if isinstance(loss, PresetConfig):
        return _phased_preset(loss.preset, **_numbers(loss)) if loss.preset in PHASED else ()
    return tuple(item for item in loss or () if isinstance(item, PhaseConfig))


def shares(phases: Sequence[PhaseConfig]) -> list[float]:
    """Each phase's share of the stage."""
    open_ones = sum(phase.share is None for phase in phases)
    left = max(0.0, 1.0 - sum(phase.share or 0.0 for phase in phases))
    return [left / open_ones if phase.share is None else phase.share for phase in phases]


def _share_of(train: TrainConfig, begin: float, end: float) -> TrainConfig:
    """The settings of a part of a training; parts of its steps add up to them all."""
    if train.steps is not None:
        return dataclasses.replace(train, steps=round(end * train.steps) - round(begin * train.steps))
    return dataclasses.replace(train, epochs=None if train.epochs is None else train.epochs * (end - begin))


def expand_loss(loss: LossConfig | None, *, has_teacher: bool) -> tuple[TermConfig, ...]:
    """The terms of a loss of one phase: presets written out, the default filled in.

    Default with a teacher: `hinton`; without: cross-entropy. The presets, KL being T²·KL(teacher ‖ student) at T:

    - `hinton` (arXiv:1503.02531), `txtai` (pure KL unless alpha says else) and `llama`: α·KL + (1−α)·CE.
    - `distilbert` (arXiv:1910.01108): 5·KL + 2·CE + 1·cosine of the last hidden states.
    - `pkd` (arXiv:1908.09355): α·KL + (1−α)·CE + β·patient, the mean over the mapped layers. As in the paper's formula,
      patient is a sum over a state's components; the authors' code takes their mean, so that its β = 500 of 768
      components is 0.65 here, and the paper's 500 outweighs everything else.
    - `minilm` (arXiv:2002.10957): KL of the last layers' attention + KL of their value relations.
    - `minilm_v2` (arXiv:2012.15828): KL of query, key and value relations, added up.

    and of two phases, which are `written_phases`:

    - `fitnets` (arXiv:1412.6550): MSE of the middle layers' hidden states, the student's projected; then as `hinton`.
    - `tinybert` (arXiv:1909.10351): MSE of the embeddings and, added up over layers, of hidden states (both projected)
      and of attention scores; then the cross-entropy with the teacher's probabilities.

    A preset's term whose weight comes out as 0 is left out.
    """
    if loss is None:
        if not has_teacher:
            return (CrossEntropyTerm(type="cross_entropy"),)
        loss = PresetConfig(preset="hinton")
    if isinstance(loss, tuple):
        return tuple(item for item in loss if not isinstance(item, PhaseConfig))
    terms = () if loss.preset in PHASED else _preset(loss.preset, **_numbers(loss))
    return tuple(term for term in terms if term.weight)


def counts(term: TermConfig) -> bool:
    """Whether the term ever has a weight."""
    return any(term.weight.extremes) if isinstance(term.weight, Schedule) else term.weight > 0


def _numbers(loss: PresetConfig) -> dict[str, Any]:
    """What a preset lets one change: as written, or its own."""
    given = {name: getattr(loss, name) for name in PRESETS[loss.preset]}
    return {name: PRESETS[loss.preset][name] if value is None else value for name, value in given.items()}


def _preset(name: str, **numbers: Any) -> tuple[TermConfig, ...]:
    match name:
        case "hinton" | "txtai" | "llama":
            return _hinton(**numbers)
        case "distilbert":
            return (
                DivergenceTerm(type="forward_kl", weight=5.0, temperature=numbers["temperature"]),
                CrossEntropyTerm(type="cross_entropy", weight=2.0),
                CosineTerm(type="cosine", weight=1.0, projection=numbers["projection"]),
            )
        case "pkd":
            own = {"weight": numbers.pop("beta"), **{key: numbers.pop(key) for key in ("layers", "projection")}}
            return (*_hinton(**numbers), PatientTerm(type="patient", **own))
        case "minilm":
            return (
                AttentionKLTerm(type="attention_kl", layers=numbers["layers"]),
                RelationTerm(type="relation_kl", layers=numbers["layers"]),
            )
        case "minilm_v2":
            return (RelationTerm(type="relation_kl", relations=("query", "key", "value"), **numbers),)
    raise AssertionError(name)


def _phased_preset(name: str, *, share: float, layers: Any, projection: Any, **numbers: Any) -> tuple[PhaseConfig, ...]:
    match name:
        case "fitnets":
            hint = HiddenStateTerm(type="hidden_state_mse", layers=layers, projection=projection)
            return _two_phases(share, "hint", (hint,), "distillation", _hinton(**numbers))
        case "tinybert":
            between = (
                EmbeddingTerm(type="embedding_mse", projection=projection),
                HiddenStateTerm(type="hidden_state_mse", layers=layers, projection=projection, reduce="sum"),
                AttentionMSETerm(type="attention_mse", layers=layers, reduce="sum"),
            )
            prediction = (DivergenceTerm(type="soft_cross_entropy", **numbers),)
            return _two_phases(share, "intermediate", between, "prediction", prediction)
    raise AssertionError(name)


def _two_phases(
    share: float, first: str, terms: tuple[TermConfig, ...], second: str, last_terms: tuple[TermConfig, ...]
) -> tuple[PhaseConfig, ...]:
    return (
        PhaseConfig(type="phase", phase=first, terms=terms, share=share),
        PhaseConfig(type="phase", phase=second, terms=last_terms),
    )


def _hinton(*, temperature: float, alpha: float) -> tuple[TermConfig, ...]:
    # 1 − 0.7 is 0.30000000000000004 in binary; the twelfth digit is far below any weight's meaning.
    every = (
        DivergenceTerm(type="forward_kl", weight=alpha, temperature=temperature),
        CrossEntropyTerm(type="cross_entropy", weight=round(1.0 - alpha, 12)),
    )
    return tuple(term for term in every if term.weight)
