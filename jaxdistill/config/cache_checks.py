"""Contradictions between a teacher cache and the stage it is for: what could not be the teacher's answer anyway."""

from __future__ import annotations

from collections.abc import Iterator

from jaxdistill.config.defaults import stage_data
from jaxdistill.config.loss_schema import (
    DivergenceTerm,
    FeatureTermConfig,
    Schedule,
    TeacherlessTermConfig,
    TermConfig,
)
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem
from jaxdistill.config.recipes import counts, stage_phases
from jaxdistill.config.schema import Run, StageConfig

_KINDS = {"classification": ("memory", "disk"), "causal_lm": ("disk",)}
"""What there is for each task."""

_WHY_NOT = {
    "causal_lm": "which holds a classifier's logits; for causal_lm write teacher_cache: disk",
    "masked_lm": "but the teacher's input is masked anew in every epoch, and nothing it said would fit; write off",
}


def cache_problems(run: Run, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Of one stage's teacher cache, its own or the run's."""
    kind = stage.teacher_cache or run.teacher_cache
    own = (*path, "teacher_cache")
    if stage.teacher is None:
        if stage.teacher_cache not in (None, "off"):
            yield Problem(own, f"got '{kind}', but the stage has no teacher; remove it")
        return
    if kind == "off":
        return
    task = run.data.task
    if kind not in _KINDS.get(task, ()):
        reason = _WHY_NOT.get(task, f"and data.task is {task}, for which there is no cache; write off")
        yield Problem(own if stage.teacher_cache else ("teacher_cache",), f"got '{kind}', {reason}")
        return
    terms = [term for phase in stage_phases(stage, has_teacher=True) for term in phase.terms if counts(term)]
    features = [term.type for term in terms if isinstance(term, FeatureTermConfig)]
    if features:
        message = f"{kind} keeps a teacher's logits, and {' and '.join(dict.fromkeys(features))} of the loss read more"
        yield Problem(own, f"{message} than those; write teacher_cache: off")
    elif task == "causal_lm":
        yield from _top_k_problems(run, stage, terms, own)


def _top_k_problems(run: Run, stage: StageConfig, terms: list[TermConfig], path: KeyPath) -> Iterator[Problem]:
    """Of a language model's most probable tokens, which are all that is kept of it."""
    if stage_data(run, stage).streaming:
        message = "got 'disk', but the data is streamed and its rows cannot be found again"
        yield Problem(path, f"{message}; write data.streaming: false")
    if isinstance(stage.teacher, tuple) and len(stage.teacher) > 1:
        message = f"got 'disk', but the stage has {len(stage.teacher)} teachers"
        yield Problem(path, f"{message}, and what several most probable tokens have in common is not known; write off")
    against = [term for term in terms if not isinstance(term, TeacherlessTermConfig)]
    other = [term.type for term in against if term.type != "forward_kl"]
    if other:
        message = f"disk keeps a language model's most probable tokens, of which {' and '.join(dict.fromkeys(other))}"
        yield Problem(path, f"{message} cannot be had; write forward_kl, or teacher_cache: off")
    for term in against:
        temperature = getattr(term, "temperature", None)
        if isinstance(temperature, Schedule) and temperature.schedule != "steps":
            message = "disk keeps the normaliser at declared temperatures, and this loss's changes with every step"
            yield Problem(path, f"{message}; write a number, schedule: steps, or teacher_cache: off")


def declared_temperatures_alone(run: Run, stage: StageConfig) -> bool:
    """Whether a stage's teacher can be had only at temperatures that are known before it runs."""
    kind = stage.teacher_cache or run.teacher_cache
    return stage.teacher is not None and kind == "disk" and run.data.task == "causal_lm"


def loss_temperatures(terms: tuple[TermConfig, ...]) -> tuple[float, ...]:
    """Temperatures at which a stage's divergences from a stored teacher are taken; ascending."""
    found: set[float] = set()
    for term in terms:
        if isinstance(term, DivergenceTerm):
            written = term.temperature
            found |= set(written.values) if isinstance(written, Schedule) else {float(written)}
    return tuple(sorted(found))
