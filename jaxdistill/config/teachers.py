"""Who teaches whom: teacher references to stages and given models, and the order in which stages can run."""

from __future__ import annotations

import graphlib
from dataclasses import dataclass

from jaxdistill.config.files import looks_local
from jaxdistill.config.model_schema import TeacherConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, did_you_mean
from jaxdistill.config.schema import PREVIOUS, Run, StageConfig


@dataclass(frozen=True)
class ResolvedTeacher:
    """One teacher, its reference resolved: exactly one of stage, pretrained and asset is set.

    stage: a stage's name, and in a `Chain` its key (the first seed's if it is repeated). weight: as written, not yet
    divided by the sum over the stage's teachers.
    """

    stage: str | None = None
    pretrained: str | None = None
    asset: str | None = None
    revision: str | None = None
    weight: float = 1.0

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.stage or self.pretrained or self.asset or ""


@dataclass(frozen=True)
class StageTeachers:
    """The teachers of one stage, and the one its student's start is copied from (None: no warm start)."""

    teachers: tuple[ResolvedTeacher, ...] = ()
    warm_start: ResolvedTeacher | None = None

    def stages(self) -> list[str]:
        """Names of the stages that must have run before."""
        every = (*self.teachers, self.warm_start) if self.warm_start else self.teachers
        return list(dict.fromkeys(teacher.stage for teacher in every if teacher.stage))


def resolve_teachers(run: Run) -> tuple[list[StageTeachers], list[Problem]]:
    """The teachers of every stage, in the order of `run.stages`; references that lead nowhere are only reported."""
    names = [stage.name for stage in run.stages]
    problems: list[Problem] = []
    resolved = []
    for index, stage in enumerate(run.stages):
        path: KeyPath = ("stages", index, "teacher")
        teachers = [
            teacher
            for place, written in _written(stage, path)
            if (teacher := _resolve(written, place, index, names, problems)) is not None
        ]
        if stage.teacher == ():
            problems.append(Problem(path, "got an empty list; expected teachers, or null for labels alone"))
        warm_start = stage.student.warm_start
        source = teachers[0] if teachers and warm_start else None
        if warm_start is not None and warm_start.from_teacher is not None:
            place = ("stages", index, "student", "warm_start", "from_teacher")
            source = _resolve(warm_start.from_teacher, place, index, names, problems)
        resolved.append(StageTeachers(tuple(teachers), source))
    return resolved, problems


def _written(stage: StageConfig, path: KeyPath) -> list[tuple[KeyPath, str | TeacherConfig]]:
    """The stage's teachers as written, each with its path."""
    if stage.teacher is None:
        return []
    if isinstance(stage.teacher, tuple):
        return [((*path, position), teacher) for position, teacher in enumerate(stage.teacher)]
    return [(path, stage.teacher)]


def _resolve(
    written: str | TeacherConfig, path: KeyPath, index: int, names: list[str], problems: list[Problem]
) -> ResolvedTeacher | None:
    """One reference; what is wrong with it goes to `problems`."""
    if isinstance(written, str):
        return _resolve_text(written, path, index, names, problems)
    given = [key for key in ("stage", "pretrained", "asset") if getattr(written, key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        problems.append(Problem(path, f"got {got}; expected exactly one of stage, pretrained, asset"))
        return None
    if written.revision is not None and written.pretrained is None:
        problems.append(Problem((*path, "revision"), "only a pretrained hub model has revisions; remove it"))
    if written.stage == PREVIOUS:
        return _previous(path, index, names, problems, weight=written.weight)
    if written.stage is not None and written.stage not in names:
        problems.append(Problem((*path, "stage"), _no_such_stage(written.stage, names)))
        return None
    return ResolvedTeacher(written.stage, written.pretrained, written.asset, written.revision, written.weight)


def _resolve_text(
    text: str, path: KeyPath, index: int, names: list[str], problems: list[Problem]
) -> ResolvedTeacher | None:
    """A bare string: the previous stage, a stage's name, or a model directory or hub id."""
    if text == PREVIOUS:
        return _previous(path, index, names, problems)
    if text in names:
        return ResolvedTeacher(stage=text)
    if "/" in text or looks_local(text):
        return ResolvedTeacher(pretrained=text)
    hint = f"for a model directory or hub id write {{pretrained: {text}}}"
    problems.append(Problem(path, f"{_no_such_stage(text, names)}; {hint}"))
    return None


def _previous(
    path: KeyPath, index: int, names: list[str], problems: list[Problem], *, weight: float = 1.0
) -> ResolvedTeacher | None:
    if index == 0:
        message = (
            "left out (the previous stage), but this is the first stage; write null to train on labels alone, or "
            "name a stage or {pretrained: DIR_OR_HUB_ID}"
        )
        problems.append(Problem(path, message))
        return None
    return ResolvedTeacher(stage=names[index - 1], weight=weight)


def _no_such_stage(text: str, names: list[str]) -> str:
    return f"no stage is named '{text}'; expected one of {', '.join(names)}{did_you_mean(text, names)}"


def run_order(names: list[str], needs: list[list[str]]) -> tuple[list[int], list[list[str]]]:
    """Indices of the stages in an order in which every stage comes after those it needs, else as written.

    Args:
      names: the stages' names.
      needs: for each, the names of the stages whose students it reads.

    Returns:
      the order (without stages that wait for a cycle), and the cycles, each as [a, b, ..., a], where a needs b.
    """
    order: list[int] = []
    waiting = dict(enumerate(needs))
    while True:
        pending = {names[i] for i in waiting}
        ready = next((i for i, wanted in waiting.items() if pending.isdisjoint(wanted)), None)
        if ready is None:
            break
        order.append(ready)
        del waiting[ready]
    cycles = []
    graph = {names[i]: wanted for i, wanted in waiting.items()}
    while (cycle := _cycle(graph)) is not None:
        cycles.append(cycle)
        # Another cycle among the rest is found as if this one were solved.
        graph = {name: wanted for name, wanted in graph.items() if name not in cycle}
    return order, cycles


def _cycle(graph: dict[str, list[str]]) -> list[str] | None:
    """A cycle in {stage: stages it needs}, beginning with the one written first; None if there is none."""
    try:
        graphlib.TopologicalSorter({n: [w for w in wanted if w in graph] for n, wanted in graph.items()}).prepare()
    except graphlib.CycleError as error:
        ring = error.args[1][:0:-1]  # graphlib lists the needed stage first, and its first stage twice
        start = min(range(len(ring)), key=lambda i: list(graph).index(ring[i]))
        return [*ring[start:], *ring[:start], ring[start]]
    return None
