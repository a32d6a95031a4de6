"""A stage that is a sweep: all its students trained together, each measured, and the best handed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxdistill.config.sweeps import Variant
from jaxdistill.stages.loading import LoadedTeacher, Survey
from jaxdistill.train.job import Job
from jaxdistill.train.loop import Trained
from jaxdistill.train.stage_step import SweptStep
from jaxdistill.train.sweep import SweepOutcome, SweptStudent, hand_on, train_sweep
from jaxdistill.train.swept import CommonObjective

if TYPE_CHECKING:
    from jaxdistill.stages.prepare import Task


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves: the best student and its row, and the rows of all: names, numbers and metrics."""

    best: Trained
    winner: dict[str, Any]
    rows: list[dict[str, Any]]


def run_sweep(task: Task, survey: Survey, console: Console) -> SweepResult:
    """Train a stage's sweep; its best student becomes the stage's checkpoint.

    Args:
      task: of the chain.
      survey: of the stage.
      console: where progress is shown.
    """
    stage, (students, common) = survey.stage, sweep_students(task, survey)
    job: Job = task.job(survey)
    outcome = train_sweep(job, students, common, console)
    rows, leader = student_rows(task, survey, stage.variants, outcome), outcome.leader
    console.print(f"{stage.key}: {stage.variants[leader].label} is handed on, of {len(students)} students")
    hand_on(job, outcome.students[leader])
    return SweepResult(outcome.students[leader], rows[leader], rows)


def sweep_students(task: Task, survey: Survey) -> tuple[list[SweptStudent], CommonObjective]:
    """The students of a stage's sweep, and what their losses have in common."""
    students = swept_students(task, survey, survey.stage.variants)
    return students, common_of(students)


def sweep_step(task: Task, survey: Survey) -> SweptStep:
    """The step of all students of a stage's sweep."""
    students, common = sweep_students(task, survey)
    job = dataclasses.replace(task.job(survey), objective=common.objective)
    return SweptStep(job, common, len(students), lambda: students)


def swept_students(task: Task, survey: Survey, variants: Sequence[Variant]) -> list[SweptStudent]:
    """Students of a stage, each with the job it would be by itself."""
    return [SweptStudent(variant.label, _job(task, survey, variant), variant.learning_rate) for variant in variants]


def student_rows(
    task: Task, survey: Survey, variants: Sequence[Variant], outcome: SweepOutcome
) -> list[dict[str, Any]]:
    """Each student measured: what is its own in its row of the summary."""
    stage, rows = survey.stage, []
    for variant, each in zip(variants, outcome.students, strict=True):
        loaded = LoadedTeacher(f"{stage.key} ({variant.label})", survey.student, each.params, each.identity)
        rows.append(
            {
                "name": f"{stage.name} ({variant.label})",
                "sweep": variant.numbers,
                "eval": task.evaluate(survey, loaded, index=0, taught=True),
                "train": each.measured,
            }
        )
    return rows


def common_of(students: Sequence[SweptStudent]) -> CommonObjective:
    """What the losses of students have in common: one program trains them."""
    return CommonObjective.of([student.job.objective for student in students])


def summary_rows(result: SweepResult, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a summary, one a student; what is not their own is the stage's `row`."""
    return [
        {**row, **own, "key": own["name"], "seed": int(own["sweep"].get("seed", row["seed"]))} for own in result.rows
    ]


def _job(task: Task, survey: Survey, variant: Variant) -> Job:
    """What a student would be trained by alone."""
    train = dataclasses.replace(survey.stage.config.train, learning_rate=variant.learning_rate)
    config = dataclasses.replace(survey.stage.config, train=train)
    own = dataclasses.replace(
        survey.stage, config=config, terms=variant.terms, seed=variant.seed, variants=(), search=None
    )
    return task.job(dataclasses.replace(survey, stage=own))
