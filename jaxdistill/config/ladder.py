"""A ladder written out: one stage becomes several, each student the teacher of the next, smaller one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from jaxdistill.config.families import DROPOUTS, SHAPE_FIELDS
from jaxdistill.config.model_schema import DeriveConfig, LadderConfig, StudentConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem
from jaxdistill.config.schema import PREVIOUS, Run, StageConfig


def expand_ladders(run: Run) -> tuple[Run, tuple[int, ...]]:
    """The run with every ladder written out as stages, and for each stage the index of the one it was written as.

    A ladder of three called `student` is the stages `student-1`, `student-2` and `student`: whoever names the stage
    means its last rung. The first learns from the stage's own teachers, every other from the rung above; sizes are
    left symbolic, as `derive` with its `rungs`, since the first teacher's may not be known before it is looked up. All
    are trained the same way; only the last is repeated where the stage is.
    """
    stages: list[StageConfig] = []
    written: list[int] = []
    for index, stage in enumerate(run.stages):
        rungs = [stage] if stage.ladder is None else list(_rungs(stage, stage.ladder))
        stages += rungs
        written += [index] * len(rungs)
    return dataclasses.replace(run, stages=tuple(stages)), tuple(written)


def _rungs(stage: StageConfig, ladder: LadderConfig) -> Iterator[StageConfig]:
    for name, left in zip(_names(stage.name, ladder), range(ladder.stages, 0, -1), strict=True):
        derive = DeriveConfig(ladder.to, left, ladder.key_heads_multiple_of)
        student = StudentConfig(
            architecture=stage.student.architecture, derive=derive, warm_start=stage.student.warm_start
        )
        yield dataclasses.replace(
            stage,
            name=name,
            student=student,
            teacher=stage.teacher if left == ladder.stages else PREVIOUS,
            repeat=stage.repeat if left == 1 else None,
            ladder=None,
        )


def _names(name: str, ladder: LadderConfig) -> list[str]:
    return [*(f"{name}-{rung}" for rung in range(1, ladder.stages)), name]


def ladder_problems(run: Run) -> Iterator[Problem]:
    """Rungs whose names are taken, and students that have a shape or an origin of their own."""
    taken = {stage.name: f"stages.{index}" for index, stage in enumerate(run.stages)}
    for index, stage in enumerate(run.stages):
        if stage.ladder is None:
            continue
        for name in _names(stage.name, stage.ladder)[:-1]:
            if name in taken:
                message = f"its stages are called {stage.name}-1, …, and '{name}' is already the name of {taken[name]}"
                yield Problem(("stages", index, "ladder"), f"{message}; choose another name")
            taken.setdefault(name, f"a rung of stages.{index}")
        for key in ("pretrained", "asset", "revision", "derive", *SHAPE_FIELDS, *DROPOUTS):
            if getattr(stage.student, key) is not None:
                message = "a ladder derives its students; remove it, or remove ladder"
                yield Problem(("stages", index, "student", key), message)


def as_written(problem: Problem, run: Run, written: tuple[int, ...]) -> Problem:
    """A problem of the expanded run at its place in the run as it was written."""
    if len(problem.path) < 2 or problem.path[0] != "stages":
        return problem
    index = written[int(problem.path[1])]
    rest: KeyPath = problem.path[2:]
    if run.stages[index].ladder is not None and rest[:2] == ("student", "derive"):
        rest = ("ladder", *rest[3:])
    return problem._replace(path=("stages", index, *rest))
