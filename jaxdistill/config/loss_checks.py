"""Contradictions in the loss of a stage: with its teacher, its batches, its task, and in its schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise

from jaxdistill.config.defaults import stage_data
from jaxdistill.config.loss_schema import (
    ContrastiveTerm,
    CoupledTermConfig,
    CrossEntropyTerm,
    LogitMSETerm,
    PresetConfig,
    RelationTerm,
    Schedule,
    SimilarityTerm,
    TeacherlessTermConfig,
    TermConfig,
)
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, shown
from jaxdistill.config.recipes import PHASED, PRESETS, Phase, counts, stage_phases, written_phases
from jaxdistill.config.schema import Run, StageConfig

_RANGES = {
    "weight": ("of at least 0", lambda number: number >= 0),
    "temperature": ("above 0", lambda number: number > 0),
    "progress": ("from 0 to 1", lambda number: 0 <= number <= 1),
}


def loss_problems(run: Run, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """The loss, against everything around it."""
    has_teacher = stage.teacher is not None
    yield from _choice_problems(stage, path)
    yield from _phase_problems(stage, path)
    if isinstance(stage.loss, PresetConfig):
        yield from _preset_problems(stage.loss, (*path, "loss"), has_teacher=has_teacher)
    for phase in stage_phases(stage, has_teacher=has_teacher):
        yield from _one_loss_problems(run, phase, path)


def _one_loss_problems(run: Run, phase: Phase, path: KeyPath) -> Iterator[Problem]:
    """Of the terms of one phase, or of a stage without phases."""
    stage, terms, loss = phase.config, phase.terms, (*path, *phase.path)
    has_teacher = stage.teacher is not None
    if stage.loss == ():
        yield Problem(loss, "got an empty list; expected terms, or leave loss out for the default")
        return
    if isinstance(stage.loss, PresetConfig) and phase.name is not None:
        if stage.loss.preset in PHASED:
            message = f"preset '{stage.loss.preset}' has phases of its own; write it as the stage's loss"
            yield Problem((*loss, "preset"), message)
            return
        yield from _preset_problems(stage.loss, loss, has_teacher=has_teacher)
    if not any(counts(term) for term in terms):
        yield Problem(loss, "all weights are 0, so nothing would be learned; give a term a weight above 0")
    written = isinstance(stage.loss, tuple) and (phase.name is None or len(phase.path) > 1)
    for position, term in enumerate(terms):
        own = (*loss, position) if written else loss
        if written and not has_teacher and not isinstance(term, TeacherlessTermConfig):
            message = f"{term.type} needs a teacher, and the stage has none (teacher: null); use cross_entropy"
            yield Problem((*own, "type"), message)
        yield from _term_problems(term, run, stage, own)
        yield from _span_problems(term, run.data.task, own)
        yield from _together_problems(term, run, stage, own)


def _choice_problems(stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Choosing among teachers takes several, and weighs none of them."""
    if stage.teacher_choice == "average":
        return
    choice = (*path, "teacher_choice")
    if not isinstance(stage.teacher, tuple) or len(stage.teacher) < 2:
        yield Problem(choice, "got 'confidence', which chooses among several teachers; remove it, or give a list")
        return
    weights = {1.0 if isinstance(teacher, str) else teacher.weight for teacher in stage.teacher}
    if len(weights) > 1:
        message = "got 'confidence', which takes one teacher whole at each example; remove the teachers' weights"
        yield Problem(choice, message)
    if stage.fused == "on":
        yield Problem((*path, "fused"), "got 'on', but the most confident teacher is known from whole logits only")


def _phase_problems(stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Of phases with one another."""
    phases, loss = written_phases(stage.loss), (*path, "loss")
    if not phases:
        return
    written = isinstance(stage.loss, tuple)
    if isinstance(stage.loss, tuple) and len(phases) < len(stage.loss):
        yield Problem(loss, "has terms beside phases; put every term into a phase")
        return
    names = [phase.phase for phase in phases]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Problem((*loss, index, "phase"), f"'{name}' is already the name of a phase before; choose another")
    total, all_given = sum(phase.share or 0.0 for phase in phases), all(phase.share for phase in phases)
    if all_given and abs(total - 1) > 1e-6:
        yield Problem(loss, f"the phases' shares add up to {total:g}; expected 1, or leave one out")
    elif not all_given and total >= 1:
        where = loss if written else (*loss, "share")
        yield Problem(where, f"got shares of {total:g}, which leave nothing to the other phases; expected less than 1")
    elif stage.train.steps is not None:
        for phase in stage_phases(stage, has_teacher=True):
            if not phase.config.train.steps:
                message = (
                    f"phase {phase.name} gets none of the stage's {stage.train.steps} steps; give it a larger share"
                )
                yield Problem((*path, *phase.path[:2]), message)
            elif 1 <= phase.config.train.warmup >= phase.config.train.steps:
                message = f"got {stage.train.warmup:g} steps, and phase {phase.name} has {phase.config.train.steps}"
                yield Problem((*path, "train", "warmup"), f"{message}; write a share of the steps (below 1)")


def _preset_problems(loss: PresetConfig, path: KeyPath, *, has_teacher: bool) -> Iterator[Problem]:
    if not has_teacher:
        message = f"preset '{loss.preset}' needs a teacher, and the stage has none (teacher: null)"
        yield Problem((*path, "preset"), f"{message}; leave loss out for cross-entropy")
    for key in (field.name for field in dataclasses.fields(loss) if field.name != "preset"):
        if getattr(loss, key) is not None and key not in PRESETS[loss.preset]:
            message = f"preset '{loss.preset}' has no {key}; expected {', '.join(PRESETS[loss.preset])}"
            yield Problem((*path, key), f"{message}, or write its terms as a list")


def _term_problems(term: TermConfig, run: Run, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Of one term alone."""
    for key in _RANGES:
        value = getattr(term, key, None)
        if isinstance(value, Schedule):
            yield from _schedule_problems(value, key, stage.train.steps, (*path, key))
    if isinstance(term, RelationTerm) and len(set(term.relations)) < len(term.relations):
        yield Problem((*path, "relations"), f"got {shown(term.relations)}; expected each at most once")
    data = stage_data(run, stage)
    if isinstance(term, ContrastiveTerm) and term.pooling == "first":
        if data.task == "causal_lm":
            message = "got 'first', but a causal language model's first token has seen nothing; use mean"
            yield Problem((*path, "pooling"), message)
        elif data.task == "masked_lm" and data.packing != "none":
            message = (
                "got 'first', but a row holds several texts, of which that is one; use mean, or data.packing: none"
            )
            yield Problem((*path, "pooling"), message)


def _span_problems(term: TermConfig, task: str, path: KeyPath) -> Iterator[Problem]:
    """Terms that would count the positions at which no answer can start, whose number padding decides."""
    if task != "question_answering":
        return
    if isinstance(term, CrossEntropyTerm) and term.label_smoothing:
        message = "got label smoothing, which wants an answer to start everywhere a little, in the question too; remove"
        yield Problem((*path, "label_smoothing"), f"{message} it")
    if isinstance(term, LogitMSETerm):
        message = "logit_mse compares as many classes everywhere, and a window's positions are fewer or more; use"
        yield Problem((*path, "type"), f"{message} forward_kl")


def _together_problems(term: TermConfig, run: Run, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Of a term with how the stage is computed."""
    if not isinstance(term, CoupledTermConfig) or not counts(term) or stage.teacher is None:
        return
    what = f"{term.type} compares the examples of a batch with one another"
    if stage.train.accumulate > 1:
        message = f"{stage.train.accumulate} micro-batches, but {what}, and would see only its own part of them"
        yield Problem((*path[:2], "train", "accumulate"), f"{message}; expected 1")
    if stage_data(run, stage).batching == "packed" and isinstance(term, (SimilarityTerm, ContrastiveTerm)):
        message = f"{what}, each a row, and data.batching: packed has several in one; write batching: bucketed"
        yield Problem((*path, "type") if len(path) > 3 else path, message)
    if run.parallel.strategy == "pmap" and run.parallel.data != 1:
        message = (
            f"{what}, and under pmap a device sees only its own; write parallel.strategy: jit, or parallel.data: 1"
        )
        yield Problem((*path, "type") if len(path) > 3 else path, message)


# --- schedules -------------------------------------------------------------------------------------------------------


def _schedule_problems(schedule: Schedule, key: str, steps: int | None, path: KeyPath) -> Iterator[Problem]:
    ramp = ("start", "end", "after", "over")
    needed, foreign = (("values", "at"), ramp) if schedule.schedule == "steps" else (("start", "end"), ("values", "at"))
    neutral = Schedule(schedule.schedule)
    for name in needed:
        if getattr(schedule, name) == getattr(neutral, name):
            yield Problem((*path, name), f"missing; schedule: {schedule.schedule} needs {' and '.join(needed)}")
    for name in foreign:
        if getattr(schedule, name) != getattr(neutral, name):
            yield Problem((*path, name), f"schedule: {schedule.schedule} does not read it; remove it")
    expected, fits = _RANGES[key]
    for number in schedule.extremes:
        if not fits(number):
            yield Problem(path, f"goes through {number:g}; expected a {key} {expected}")
            break
    moments = _stair_problems if schedule.schedule == "steps" else _ramp_problems
    yield from moments(schedule, steps, path)


def _ramp_problems(schedule: Schedule, steps: int | None, path: KeyPath) -> Iterator[Problem]:
    after, over = schedule.after, schedule.over
    if after and not _moment(after):
        yield Problem((*path, "after"), f"got {after:g}; expected a share of the steps (below 1) or a number of steps")
    elif over is not None and (over == 1 or not _moment(over)):
        message = f"got {over:g}; expected a share of the steps (below 1), or 2 steps or more"
        yield Problem((*path, "over"), f"{message}; leave it out to go on until the stage ends")
    elif over is not None and over < 1 and after < 1 and after + over > 1:
        yield Problem((*path, "over"), f"got {over:g}, after {after:g}; expected at most {1 - after:g}, the rest")
    elif steps is not None and _in_steps(after, steps) + _in_steps(over or 0, steps) > steps:
        yield Problem(path, f"goes on beyond the last step; expected after and over within train.steps, {steps}")


def _stair_problems(schedule: Schedule, steps: int | None, path: KeyPath) -> Iterator[Problem]:
    values, at = schedule.values, schedule.at
    if not (values and at):
        return
    if len(values) != len(at) + 1:
        yield Problem((*path, "at"), f"got {len(at)} moments for {len(values)} values; expected one less than values")
    elif not all(map(_moment, at)) or len({moment < 1 for moment in at}) > 1:
        message = f"got {shown(at)}; expected shares of the steps (below 1), or whole numbers of steps"
        yield Problem((*path, "at"), message)
    elif any(late <= early for early, late in pairwise(at)):
        yield Problem((*path, "at"), f"got {shown(at)}; expected each later than the one before")
    elif steps is not None and at[-1] >= steps:
        yield Problem((*path, "at"), f"step {at[-1]:g} is beyond the last one; expected less than train.steps, {steps}")


def _moment(number: float) -> bool:
    """A share of the steps, or a whole number of them."""
    return 0 < number < 1 or (number >= 1 and number == int(number))


def _in_steps(number: float, steps: int) -> float:
    return number * steps if number < 1 else number
