"""What a stage leaves to others: the run's data, the loss presets and the default loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from jaxdistill.config.data_schema import SOURCES, DataConfig, SourceConfig
from jaxdistill.config.loss_schema import (
    LAST_LAYERS,
    AttentionKLTerm,
    CosineTerm,
    CrossEntropyTerm,
    DivergenceTerm,
    LossConfig,
    PatientTerm,
    PresetConfig,
    RelationTerm,
    TermConfig,
)
from jaxdistill.config.schema import Run, StageConfig


@functools.cache
def validator(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of one of the configuration classes, built once."""
    return TypeAdapter(kind)


def stage_data(run: Run, stage: StageConfig) -> DataConfig:
    """The run's data with the keys of the stage's own `data` written over it; a source is replaced whole."""
    if not stage.data:
        return run.data
    merged = dataclasses.asdict(run.data) | stage.data
    return validator(DataConfig).validate_python(merged)


def with_best(stage: StageConfig, task: str) -> StageConfig:
    """The stage with the metric that chooses its checkpoint, which its task decides where it is left out."""
    if stage.checkpoint.best is not None:
        return stage
    best = "perplexity" if task == "causal_lm" else "accuracy"
    return dataclasses.replace(stage, checkpoint=dataclasses.replace(stage.checkpoint, best=best))


def named_sources(
    data: DataConfig, keys: set[str] | None = None
) -> Iterator[tuple[tuple[str | int, ...], SourceConfig]]:
    """Every source written under `keys` (None: all) of a data configuration, with its path there."""
    for key in SOURCES:
        if (keys is None or key in keys) and (source := getattr(data, key)) is not None:
            yield (key,), source
    if keys is None or "unlabelled" in keys:
        for index, source in enumerate(data.unlabelled):
            yield ("unlabelled", index), source


PRESETS: dict[str, dict[str, Any]] = {
    "hinton": {"temperature": 2.0, "alpha": 0.7},
    "txtai": {"temperature": 1.0, "alpha": 1.0},
    "llama": {"temperature": 2.0, "alpha": 0.7},
    "distilbert": {"temperature": 2.0},
    "pkd": {"temperature": 10.0, "alpha": 0.7, "beta": 500.0, "layers": "skip"},
    "minilm": {"layers": LAST_LAYERS},
    "minilm_v2": {"layers": LAST_LAYERS, "relation_heads": None},
}
"""What each preset lets one change, and its own choice."""


def expand_loss(loss: LossConfig | None, *, has_teacher: bool) -> tuple[TermConfig, ...]:
    """The terms of a loss: presets written out, the default filled in.

    Default with a teacher: `hinton`; without: cross-entropy. The presets, KL being T²·KL(teacher ‖ student) at T:

    - `hinton` (arXiv:1503.02531), `txtai` (pure KL unless alpha says else) and `llama`: α·KL + (1−α)·CE.
    - `distilbert` (arXiv:1910.01108): 5·KL + 2·CE + 1·cosine of the last hidden states.
    - `pkd` (arXiv:1908.09355): α·KL + (1−α)·CE + β·patient, the mean over the mapped layers.
    - `minilm` (arXiv:2002.10957): KL of the last layers' attention + KL of their value relations.
    - `minilm_v2` (arXiv:2012.15828): KL of query, key and value relations, added up.

    A preset's term whose weight comes out as 0 is left out.
    """
    if loss is None:
        if not has_teacher:
            return (CrossEntropyTerm(type="cross_entropy"),)
        loss = PresetConfig(preset="hinton")
    if isinstance(loss, tuple):
        return loss
    numbers = {
        name: own if getattr(loss, name) is None else getattr(loss, name) for name, own in PRESETS[loss.preset].items()
    }
    return tuple(term for term in _preset(loss.preset, **numbers) if term.weight)


def _preset(name: str, **numbers: Any) -> tuple[TermConfig, ...]:
    match name:
        case "hinton" | "txtai" | "llama":
            return _hinton(**numbers)
        case "distilbert":
            return (
                DivergenceTerm(type="forward_kl", weight=5.0, temperature=numbers["temperature"]),
                CrossEntropyTerm(type="cross_entropy", weight=2.0),
                CosineTerm(type="cosine", weight=1.0),
            )
        case "pkd":
            patient = PatientTerm(type="patient", weight=numbers.pop("beta"), layers=numbers.pop("layers"))
            return (*_hinton(**numbers), patient)
        case "minilm":
            return (
                AttentionKLTerm(type="attention_kl", layers=numbers["layers"]),
                RelationTerm(type="relation_kl", layers=numbers["layers"]),
            )
        case "minilm_v2":
            return (RelationTerm(type="relation_kl", relations=("query", "key", "value"), **numbers),)
    raise AssertionError(name)


def _hinton(*, temperature: float, alpha: float) -> tuple[TermConfig, ...]:
    # 1 − 0.7 is 0.30000000000000004 in binary; the twelfth digit is far below any weight's meaning.
    return (
        DivergenceTerm(type="forward_kl", weight=alpha, temperature=temperature),
        CrossEntropyTerm(type="cross_entropy", weight=round(1.0 - alpha, 12)),
    )
