"""The resolved `Chain`: every stage with its data, loss terms, teachers, seed and directory, in the order they run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill.config.checks import contradictions
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.config.defaults import stage_data, with_best
from jaxdistill.config.ladder import expand_ladders
from jaxdistill.config.loss_schema import TermConfig
from jaxdistill.config.recipes import stage_phases
from jaxdistill.config.schema import Run, StageConfig
from jaxdistill.config.searches import Search, stage_search
from jaxdistill.config.sweeps import Variant, variants
from jaxdistill.config.teachers import ResolvedTeacher, StageTeachers, resolve_teachers, run_order
from jaxdistill.errors import ConfigError


@dataclass(frozen=True)
class ChainStage:
    """One training: a stage of the run, one seed of a repeated stage, or one phase of either.

    key: `student`, or `student/seed-1`; unique in the chain. data: the run's, with the stage's own keys written over.
    terms: preset or default expanded. teachers and warm_start_teacher name other stages by key. Of several phases the
    last has the stage's name, those before it have names such as `student.hint`; begins: the key of the phase whose
    student this one goes on with. variants: the students of a sweep, which are trained together; of a search, which has
    `search` instead, they are not known yet.
    """

    name: str
    seed: int
    key: str
    directory: Path
    config: StageConfig
    data: DataConfig
    terms: tuple[TermConfig, ...]
    teachers: tuple[ResolvedTeacher, ...]
    warm_start_teacher: ResolvedTeacher | None
    teacher_cache: str
    repeats: bool
    phase: str | None = None
    begins: str | None = None
    variants: tuple[Variant, ...] = ()
    search: Search | None = None

    @property
    def losses(self) -> tuple[tuple[TermConfig, ...], ...]:
        """The terms of the stage's loss, and of those that its students have instead."""
        known = self.variants if self.search is None else self.search.extremes
        return (self.terms, *(variant.terms for variant in known))


@dataclass(frozen=True)
class GivenTeacher:
    """A teacher that no stage trains; `data` is that of the first stage that learns from it."""

    pretrained: str | None
    asset: str | None
    revision: str | None
    data: DataConfig

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.pretrained or self.asset or ""


@dataclass(frozen=True)
class Chain:
    """A run, resolved: `stages` in the order they run, each after the stages it reads from; `run` is as written."""

    run: Run
    directory: Path
    stages: tuple[ChainStage, ...]
    given: tuple[GivenTeacher, ...]

    def stage(self, key: str) -> ChainStage:
        """The stage with this key."""
        return next(stage for stage in self.stages if stage.key == key)


def build_chain(run: Run) -> Chain:
    """Resolve a run into the stages to train, in order.

    Stages run as written, except that one written before its teacher comes after it. A ladder becomes one `ChainStage`
    per rung, a repeated stage one per seed, and hands on its first seed's student; a loss of several phases makes one
    for each, and the last hands on. Models taken from outside are listed
    once each in `given`, in the order the run first learns from them (a model that is only copied from is not).

    Raises:
      ConfigError: the run contradicts itself; all problems at once.
    """
    problems = contradictions(run)
    if problems:
        raise ConfigError(*map(str, problems))
    directory = Path(run.output_dir or Path("runs") / run.name).expanduser()
    expanded, _ = expand_ladders(run)
    resolved, _ = resolve_teachers(expanded)
    order, _ = run_order([stage.name for stage in expanded.stages], [teachers.stages() for teachers in resolved])
    keys = {stage.name: stage.name + _seed_suffix(stage) for stage in expanded.stages}
    stages = [
        chain_stage
        for index in order
        for chain_stage in _expand(run, expanded.stages[index], resolved[index], directory=directory, keys=keys)
    ]
    return Chain(run, directory, tuple(stages), _given(expanded, resolved))


def _seed_suffix(stage: StageConfig) -> str:
    """What distinguishes the student that a stage hands on among its repeats."""
    return f"/seed-{stage.repeat.seeds[0]}" if stage.repeat else ""


def _expand(
    run: Run, stage: StageConfig, teachers: StageTeachers, *, directory: Path, keys: dict[str, str]
) -> list[ChainStage]:
    """A stage, once per phase, and each phase once per seed: seeds of one phase share a compiled program."""

    def by_key(teacher: ResolvedTeacher) -> ResolvedTeacher:
        return dataclasses.replace(teacher, stage=keys[teacher.stage]) if teacher.stage else teacher

    cache = stage.teacher_cache or run.teacher_cache
    common: dict[str, Any] = {
        "data": stage_data(run, stage),
        "teachers": tuple(map(by_key, teachers.teachers)),
        "warm_start_teacher": by_key(teachers.warm_start) if teachers.warm_start else None,
        "teacher_cache": cache if teachers.teachers else "off",
        "repeats": stage.repeat is not None,
    }
    runs = [(seed, f"/seed-{seed}") for seed in stage.repeat.seeds] if stage.repeat else [(run.seed, "")]
    phases = stage_phases(stage, has_teacher=bool(teachers.teachers))
    expanded, before = [], None
    for phase in phases:
        name = stage.name if phase is phases[-1] else f"{stage.name}.{phase.name}"
        config = with_best(phase.config, run.data.task, phase.terms)
        expanded += [
            ChainStage(
                name=name,
                seed=seed,
                key=name + suffix,
                directory=directory / "stages" / (name + suffix),
                config=config,
                terms=phase.terms,
                phase=phase.name,
                begins=before + suffix if before else None,
                variants=variants(stage, phase.terms, seed=run.seed),
                search=stage_search(stage, phase.terms, seed=run.seed),
                **common,
            )
            for seed, suffix in runs
        ]
        before = name
    return expanded


def _given(run: Run, resolved: list[StageTeachers]) -> tuple[GivenTeacher, ...]:
    """The teachers that no stage trains, each once."""
    given: dict[tuple[str | None, ...], GivenTeacher] = {}
    for stage, teachers in zip(run.stages, resolved, strict=True):
        for teacher in teachers.teachers:
            if teacher.stage is None:
                source = (teacher.pretrained, teacher.asset, teacher.revision)
                given.setdefault(source, GivenTeacher(*source, data=stage_data(run, stage)))
    return tuple(given.values())
