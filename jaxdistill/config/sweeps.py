"""A stage's sweep as the stages it stands for: one for every combination of the numbers listed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from jaxdistill.config.loss_schema import CrossEntropyTerm, Schedule, TeacherlessTermConfig, TermConfig, ZLossTerm
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, shown
from jaxdistill.config.recipes import stage_phases
from jaxdistill.config.schema import RangeConfig, Run, StageConfig, SweepConfig

KEYS = ("temperature", "kd_weight", "learning_rate", "seed")
"""What a sweep may vary."""

MOST = 256
"""Students of one step: beyond, a search is what is wanted."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One student of a sweep: what it is called, what is its own, and its loss and learning rate.

    numbers: the swept ones, by the keys of the sweep. seed: draws its parameters and its dropout.
    """

    label: str
    numbers: dict[str, float]
    terms: tuple[TermConfig, ...]
    learning_rate: float
    seed: int


def variants(stage: StageConfig, terms: tuple[TermConfig, ...], *, seed: int) -> tuple[Variant, ...]:
    """Every combination, the last key varying fastest; none of a stage that is not swept, or whose sweep is a search.

    Args:
      stage: of which.
      terms: of its loss, presets expanded.
      seed: of the stage, where none is swept.
    """
    if stage.sweep is None or stage.sweep.trials is not None:
        return ()
    lists = {key: values for key, values in given(stage.sweep).items() if isinstance(values, tuple)}
    return tuple(
        make_variant(stage, terms, dict(zip(lists, combination, strict=True)), seed=seed)
        for combination in itertools.product(*lists.values())
    )


def given(sweep: SweepConfig) -> dict[str, tuple[float, ...] | RangeConfig]:
    """What is written of the numbers that a sweep may vary, by their keys."""
    return {key: values for key in KEYS if (values := getattr(sweep, key))}


def make_variant(stage: StageConfig, terms: tuple[TermConfig, ...], numbers: dict[str, Any], *, seed: int) -> Variant:
    """The student of a stage that has these numbers; arguments as `variants`."""
    changed = tuple(_with_numbers(term, numbers) for term in terms)
    if "kd_weight" in numbers and not any(isinstance(term, CrossEntropyTerm) for term in changed):
        rest = round(1.0 - numbers["kd_weight"], 12)
        changed = (*changed, CrossEntropyTerm(type="cross_entropy", weight=rest))
    return Variant(
        label=", ".join(f"{key}={value:g}" for key, value in numbers.items()),
        numbers=numbers,
        terms=changed,
        learning_rate=float(numbers.get("learning_rate", stage.train.learning_rate)),
        seed=int(numbers.get("seed", seed)),
    )


def _with_numbers(term: TermConfig, numbers: dict[str, Any]) -> TermConfig:
    """A term with the swept temperature and weight in it; cross-entropy has what the distillation term leaves."""
    changes: dict[str, Any] = {}
    against_teacher = not isinstance(term, TeacherlessTermConfig)
    if "temperature" in numbers and against_teacher and hasattr(term, "temperature"):
        changes["temperature"] = float(numbers["temperature"])
    if "kd_weight" in numbers and not isinstance(term, ZLossTerm):
        weight = numbers["kd_weight"]
        changes["weight"] = float(weight) if against_teacher else round(1.0 - weight, 12)
    return dataclasses.replace(term, **changes)


def sweep_problems(run: Run, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Contradictions between a sweep and its stage."""
    sweep = stage.sweep
    if sweep is None:
        return
    own = (*path, "sweep")
    numbers = given(sweep)
    if not numbers:
        yield Problem(own, f"lists nothing; expected {', '.join(KEYS)} with a list of numbers each")
        return
    yield from _list_problems(sweep, own)
    if stage.ladder is not None:
        yield Problem(own, "students of a ladder are of several sizes; sweep one of them in a stage of its own")
    if stage.repeat is not None:
        yield Problem(own, "a stage is either swept or repeated; write sweep.seed instead of repeat.seeds")
    if run.parallel.strategy == "pmap" or run.parallel.fsdp != 1 or run.parallel.tensor != 1:
        message = "students of a sweep are whole on every device; write parallel.strategy: jit and fsdp, tensor: 1"
        yield Problem(own, message)
    phase, *later = stage_phases(stage, has_teacher=stage.teacher is not None)
    if later:
        yield Problem(own, "the loss has phases; sweep a stage for each of them")
        return
    terms = phase.terms
    against = [term for term in terms if not isinstance(term, TeacherlessTermConfig)]
    for key in ("temperature", "kd_weight"):
        if key in numbers and stage.teacher is None:
            yield Problem((*own, key), "the stage has no teacher; remove it")
    if stage.teacher is None:
        return
    if "temperature" in numbers and not any(hasattr(term, "temperature") for term in against):
        yield Problem((*own, "temperature"), "no term of the loss has a temperature; remove it")
    if "kd_weight" in numbers:
        labels = [term for term in terms if isinstance(term, CrossEntropyTerm)]
        if len(against) != 1 or len(labels) > 1:
            message = "weighs one distillation term w and cross-entropy 1 − w"
            yield Problem((*own, "kd_weight"), f"{message}, and the loss has others; write such a loss, or remove it")
        elif any(isinstance(term.weight, Schedule) for term in (*against, *labels)):
            yield Problem((*own, "kd_weight"), "the loss's weights are scheduled; write numbers, or remove it")


def _list_problems(sweep: SweepConfig, path: KeyPath) -> Iterator[Problem]:
    lists = {key: values for key, values in given(sweep).items() if isinstance(values, tuple)}
    count = 1
    for key, values in lists.items():
        count *= len(values)
        if len(set(values)) < len(values):
            yield Problem((*path, key), f"got {shown(values)}; expected each once")
    if count > MOST and sweep.trials is None:
        message = f"{count} combinations, which one step would train at the same time; expected {MOST} at most"
        yield Problem(path, f"{message}, or trials: N to search among them")
    if set(lists.get("kd_weight", ())) == {0.0, 1.0}:
        message = "got 0 and 1 alone, which have no term in common; give one between, or a stage for each"
        yield Problem((*path, "kd_weight"), message)
