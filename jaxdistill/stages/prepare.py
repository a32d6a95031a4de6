"""A chain's stages, surveyed before anything is loaded, and turned into jobs when their turn has come.

`survey` reads only configurations, tokenizers and data, for every stage, before the first one trains: whatever can be
known to be wrong is found there. What differs between tasks is in `classification.py`, `language_models.py`,
`tagging.py` and `answering.py`.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from rich.console import Console

from jaxdistill import models
from jaxdistill.config.chain import Chain, ChainStage, ResolvedTeacher
from jaxdistill.errors import ConfigError
from jaxdistill.stages.answering import Answering
from jaxdistill.stages.classification import Classification
from jaxdistill.stages.language_models import LanguageModels
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey
from jaxdistill.stages.masked_tokens import MaskedTokens
from jaxdistill.stages.next_tokens import NextTokens
from jaxdistill.stages.positions import OverPositions
from jaxdistill.stages.proposals import require_optuna
from jaxdistill.stages.tagging import Tagging
from jaxdistill.stages.teacher_files import TeacherFiles
from jaxdistill.train.job import Job
from jaxdistill.train.metrics import require_wandb


class Task(Protocol):
    """What a chain's models do, and what follows for surveys, jobs and measurements."""

    def survey(self, stage: ChainStage) -> Any:
        """Resolve and compare a stage's models, tokenizers and data."""
        ...

    def read(self, survey: Any) -> None:
        """Look at all of a stage's data, after every stage has been surveyed."""
        ...

    def teacher(self, reference: ResolvedTeacher, survey: Any) -> LoadedTeacher:
        """One of a stage's teachers, loaded."""
        ...

    def job(self, survey: Any) -> Job:
        """Everything a stage's training needs."""
        ...

    def evaluate(self, survey: Any, model: LoadedTeacher, *, index: int, taught: bool) -> dict[str, dict[str, float]]:
        """Metrics of a model on each measured split of a stage; `taught`: also against the stage's teachers."""
        ...


@runtime_checkable
class CachingTask(Protocol):
    """A task whose teachers' answers can be kept on disk."""

    def check_files(self, survey: Any) -> None:
        """Refuse caches that are there already and are stale or damaged, as far as can be told without the teachers."""
        ...

    def files(self, survey: Any) -> list[TeacherFiles]:
        """The caches of a stage's teachers, which must have been trained."""
        ...


def make_task(loading: Loading) -> Task:
    """The chain's task, by its name."""
    match loading.chain.run.data.task:
        case "classification":
            return Classification(loading)
        case "causal_lm":
            return LanguageModels(loading, NextTokens())
        case "masked_lm":
            return LanguageModels(loading, MaskedTokens())
        case "token_classification":
            return OverPositions(loading, Tagging())
        case "question_answering":
            return OverPositions(loading, Answering())


class Preparation:
    """Surveys and jobs of one chain; keeps what stages share: models in memory, teacher logits, data."""

    def __init__(self, chain: Chain, console: Console, *, untrained: bool = False) -> None:
        """`untrained`: stand in for stages that have not been trained with fresh models of their shape."""
        self.chain = chain
        self.loading = Loading(chain, console, untrained=untrained)
        self.task = make_task(self.loading)

    @property
    def surveys(self) -> dict[str, Any]:
        """Every stage's survey by its key."""
        return self.loading.surveys

    @property
    def caching(self) -> CachingTask:
        """The task, where the configuration lets a stage keep its teachers on disk."""
        assert isinstance(self.task, CachingTask)
        return self.task

    def survey(self, *, check_caches: bool = True) -> tuple[Survey, ...]:
        """Resolve and compare every stage's models, tokenizers and labels, look at all texts, and at caches."""
        if self.chain.run.logging.wandb is not None:
            require_wandb()
        if self.loading.quantisation is not None:
            models.require_qwix()
        if any(stage.search is not None for stage in self.chain.stages):
            require_optuna()
        swept = next((stage for stage in self.chain.stages if stage.config.sweep is not None), None)
        if swept is not None and jax.process_count() > 1:
            raise ConfigError(
                f"stages.{swept.name}.sweep: students of a sweep are trained by one process, and there are "
                f"{jax.process_count()}; start one, or write a stage for each student"
            )
        for stage in self.chain.stages:
            self.surveys[stage.key] = self.task.survey(stage)
        for survey in self.surveys.values():
            self.task.read(survey)
        cached = [each for each in self.surveys.values() if each.stage.teacher_cache == "disk"]
        for survey in cached if check_caches and not self.loading.untrained else ():
            self.caching.check_files(survey)
        return tuple(self.surveys.values())

    def first_use(self, reference: ResolvedTeacher) -> tuple[Survey, int]:
        """The first stage that learns from a given teacher, and the index of the tokenizer it reads there."""
        for survey in self.surveys.values():
            if (index := survey.tokenizer_index(reference)) is not None:
                return survey, index
        raise LookupError(reference.label)
