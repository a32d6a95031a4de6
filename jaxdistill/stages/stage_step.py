"""The step that a stage is trained by, whether it has one student or a sweep of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxdistill.stages.loading import Survey
from jaxdistill.stages.search import first_round
from jaxdistill.stages.sweep import sweep_step
from jaxdistill.train.stage_step import StageStep

if TYPE_CHECKING:
    from jaxdistill.stages.prepare import Task


def stage_step(task: Task, survey: Survey) -> StageStep:
    """The step of a stage's student, or of all students of its sweep; of a search, of those of its first round."""
    if survey.stage.search is not None:
        return first_round(task, survey)
    if survey.stage.variants:
        return sweep_step(task, survey)
    return StageStep(task.job(survey))
