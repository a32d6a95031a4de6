"""What a stage leaves to others: the run's data, the loss presets and the default loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from jaxdistill.config.data_schema import SOURCES, DataConfig, SourceConfig
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm, HintonPreset, LossConfig, TermConfig
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


def expand_loss(loss: LossConfig | None, *, has_teacher: bool) -> tuple[TermConfig, ...]:
    """The terms of a loss: presets written out, the default filled in.

    Default with a teacher: 0.7·T²·KL at T=2 + 0.3·CE; without: cross-entropy. `hinton` is α·T²·KL + (1−α)·CE
    (arXiv:1503.02531), T=2 and α=0.7 unless given; `txtai` the same with T=1 and α=1, which is pure KL. A preset's
    term whose weight comes out as 0 is left out.
    """
    if loss is None:
        if not has_teacher:
            return (CrossEntropyTerm(type="cross_entropy"),)
        loss = HintonPreset(preset="hinton")
    if isinstance(loss, tuple):
        return loss
    temperature, alpha = {"hinton": (2.0, 0.7), "txtai": (1.0, 1.0)}[loss.preset]
    temperature = temperature if loss.temperature is None else loss.temperature
    alpha = alpha if loss.alpha is None else loss.alpha
    # 1 − 0.7 is 0.30000000000000004 in binary; the twelfth digit is far below any weight's meaning.
    terms = (
        DivergenceTerm(type="forward_kl", weight=alpha, temperature=temperature),
        CrossEntropyTerm(type="cross_entropy", weight=round(1.0 - alpha, 12)),
    )
    return tuple(term for term in terms if term.weight > 0)
