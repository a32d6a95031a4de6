"""A stage's sweep as a search: numbers tried in rounds, of which each is told what came of those before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxdistill.config.cache_checks import declared_temperatures_alone
from jaxdistill.config.defaults import with_best
from jaxdistill.config.loss_schema import TermConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, shown
from jaxdistill.config.recipes import stage_phases
from jaxdistill.config.schema import RangeConfig, Run, StageConfig, SweepConfig
from jaxdistill.config.sweeps import MOST, Variant, given, make_variant

TOGETHER = 4
"""Students of one round, where nothing is written."""

_BOUNDS = {"temperature": "above 0", "learning_rate": "above 0", "kd_weight": "from 0 to 1"}


@dataclasses.dataclass(frozen=True)
class Search:
    """Numbers to be found: so many trials, of which so many are trained together in one compiled step.

    space: by the keys of the sweep, a range, or the values to choose among. extremes: students that together have every
    term of the loss, and whatever differs of it between any two students of the search; they are not trained.
    """

    trials: int
    together: int
    space: dict[str, RangeConfig | tuple[float, ...]]
    extremes: tuple[Variant, ...]

    @property
    def rounds(self) -> tuple[range, ...]:
        """The trials of each round by their numbers; the last may have fewer."""
        starts = range(0, self.trials, self.together)
        return tuple(range(start, min(start + self.together, self.trials)) for start in starts)


def stage_search(stage: StageConfig, terms: tuple[TermConfig, ...], *, seed: int) -> Search | None:
    """The search of a stage; None if its sweep is none.

    Args:
      stage: its sweep is well formed.
      terms: of its loss, presets expanded.
      seed: of the stage, where none is searched.
    """
    sweep = stage.sweep
    if sweep is None or sweep.trials is None:
        return None
    space = given(sweep)
    together = min(sweep.together or TOGETHER, sweep.trials)
    extremes = tuple(make_variant(stage, terms, numbers, seed=seed) for numbers in _extremes(space))
    return Search(sweep.trials, together, space, extremes)


def trial_variant(
    stage: StageConfig, terms: tuple[TermConfig, ...], numbers: Mapping[str, float], *, number: int, seed: int
) -> Variant:
    """The student of a trial, from what was proposed for it."""
    variant = make_variant(stage, terms, dict(numbers), seed=seed)
    return dataclasses.replace(variant, label=f"trial {number}: {variant.label}")


def search_problems(run: Run, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """Contradictions of a sweep's ranges, trials and rounds."""
    sweep = stage.sweep
    if sweep is None:
        return
    path = (*path, "sweep")
    ranges = {key: value for key, value in given(sweep).items() if isinstance(value, RangeConfig)}
    for key, value in ranges.items():
        yield from _range_problems(key, value, (*path, key))
        if sweep.trials is None:
            yield Problem(
                (*path, key), "got a range, in which only a search tries numbers; add trials: N, or list some"
            )
    yield from _count_problems(sweep, path)
    terms = stage_phases(stage, has_teacher=stage.teacher is not None)[-1].terms
    if sweep.trials is not None and with_best(stage, run.data.task, terms).checkpoint.best == "last":
        message = "checkpoint.best is 'last', by which no trial is better than another; expected a metric there"
        yield Problem((*path, "trials"), message)
    if "temperature" in ranges and declared_temperatures_alone(run, stage):
        message = "a teacher_cache on disk keeps the normaliser at declared temperatures; list those to choose among"
        yield Problem((*path, "temperature"), message)


def _count_problems(sweep: SweepConfig, path: KeyPath) -> Iterator[Problem]:
    if sweep.together is None:
        return
    if sweep.trials is None:
        yield Problem(
            (*path, "together"), "says how many of a search's trials are one step; add trials: N, or remove it"
        )
    elif sweep.together > sweep.trials:
        yield Problem((*path, "together"), f"got {sweep.together}; expected at most trials, which is {sweep.trials}")
    if sweep.together > MOST:
        message = f"got {sweep.together} students, which one step would train at the same time"
        yield Problem((*path, "together"), f"{message}; expected {MOST} at most")


def _range_problems(key: str, value: RangeConfig, path: KeyPath) -> Iterator[Problem]:
    if key == "kd_weight":
        outside = [bound for bound in ("low", "high") if not 0 <= getattr(value, bound) <= 1]
    else:
        outside = [bound for bound in ("low", "high") if getattr(value, bound) <= 0]
    for bound in outside:
        yield Problem((*path, bound), f"got {shown(getattr(value, bound))}; expected a number {_BOUNDS[key]}")
    if value.low >= value.high:
        yield Problem(path, f"got low {value.low:g} and high {value.high:g}; expected low below high")
    if value.log and value.low <= 0 and "low" not in outside:
        yield Problem((*path, "low"), f"got {shown(value.low)} with log: true; expected a number above 0")


def _extremes(space: Mapping[str, RangeConfig | tuple[float, ...]]) -> Iterator[dict[str, Any]]:
    """The middle of a space, and every point with one of the loss's numbers elsewhere: listed, or at an end."""
    tried = {
        key: (values.low, (values.low + values.high) / 2, values.high) if isinstance(values, RangeConfig) else values
        for key, values in space.items()
    }
    middle = {key: values[len(values) // 2] for key, values in tried.items()}
    yield middle
    for key in ("temperature", "kd_weight"):
        for value in tried.get(key, ()):
            yield middle | {key: value}
