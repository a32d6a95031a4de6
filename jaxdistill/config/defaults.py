"""What a stage leaves to others: the run's data, and the metric that chooses its checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter

from jaxdistill.config.data_schema import SOURCES, DataConfig, SourceConfig
from jaxdistill.config.loss_schema import FeatureTermConfig, TermConfig
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


def with_best(stage: StageConfig, task: str, terms: Sequence[TermConfig]) -> StageConfig:
    """The stage with the metric that chooses its checkpoint, which its task and loss decide where it is left out."""
    if stage.checkpoint.best is not None:
        return stage
    match task:
        case "causal_lm":
            best = "perplexity"
        case "token_classification" | "question_answering":
            best = "f1"
        case "masked_lm":  # features alone leave its head as it was, whose loss would choose at random
            best = "last" if all(isinstance(term, FeatureTermConfig) for term in terms) else "loss"
        case _:
            best = "accuracy"
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
