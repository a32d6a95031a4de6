"""YAML and overrides to a validated `Run`, with everything that is wrong reported at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxdistill.config.checks import contradictions
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.config.defaults import validator
from jaxdistill.config.files import missing_files
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, from_validation
from jaxdistill.config.reading import apply_overrides, read_yaml
from jaxdistill.config.schema import Run
from jaxdistill.errors import ConfigError


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read, override and validate a run's configuration.

    Args:
      path: YAML file.
      overrides: `key.path=value` texts, applied in order; a part of the path is a key, a list index, or, in `stages`,
        a stage's name; the value is YAML.

    Returns:
      the run; relative paths in it stay as written, and mean the current directory.

    Raises:
      ConfigError: with one line per problem: syntax, overrides, unknown keys, wrong values, contradictions, local
        files that are not there.
    """
    raw = read_yaml(path)
    problems = apply_overrides(raw, overrides)
    run, more = _validated(raw)
    problems += more
    if run is not None:
        problems += _unrelated([*contradictions(run), *missing_files(run)], more)
    return _run_or_raise(run, problems)


def run_from_dict(raw: Mapping[str, Any]) -> Run:
    """A run from plain values, as `resolved_dict` gives them; files are not looked for.

    Raises:
      ConfigError: unknown keys, wrong values, contradictions, one line each.
    """
    run, problems = _validated(raw)
    if run is not None:
        problems += _unrelated(contradictions(run), problems)
    return _run_or_raise(run, problems)


def _run_or_raise(run: Run | None, problems: list[Problem]) -> Run:
    if problems or run is None:
        raise ConfigError(*dict.fromkeys(map(str, problems)))
    return run


def _validated(raw: Mapping[str, Any]) -> tuple[Run | None, list[Problem]]:
    """The run and what is wrong with its values.

    When something is, the run is what remains without it, so that contradictions elsewhere are found in the same go;
    None if nothing useful remains.
    """
    problems: list[Problem] = []
    run: Run | None = None
    remaining: Any = raw
    for attempt in range(4):  # what a removal leaves incomplete shows in the next round
        try:
            run = validator(Run).validate_python(remaining)
            break
        except ValidationError as error:
            found = from_validation(error, Run, remaining)
            problems += found if attempt == 0 else []
            remaining = _without(remaining, [problem.path for problem in found])
    if run is None:
        return None, problems
    stages = []
    for index, stage in enumerate(run.stages):
        found = _stage_data_problems(run, stage.data, ("stages", index, "data"))
        problems += found
        bad = {problem.path[3] for problem in found}
        data = {key: value for key, value in (stage.data or {}).items() if key not in bad}
        name = _item(_item(raw["stages"], index), "name")  # messages use it even if it is no valid name
        stages.append(dataclasses.replace(stage, data=data or None, name=str(name or stage.name)))
    return (dataclasses.replace(run, stages=tuple(stages)) if problems else run), problems


def _stage_data_problems(run: Run, written: dict[str, Any] | None, prefix: KeyPath) -> list[Problem]:
    """What is wrong with a stage's own `data`, which only fits together with the run's."""
    if not written:
        return []
    merged = dataclasses.asdict(run.data) | written
    try:
        validator(DataConfig).validate_python(merged)
    except ValidationError as error:
        return from_validation(error, DataConfig, merged, prefix=prefix)
    return []


_STAND_INS: dict[str, Any] = {
    "name": "unnamed",
    "data": {},
    "student": {},
    "train": {},
    "ladder": {"to": 1.0, "stages": 1},  # a stage with a ladder needs no student
}
"""Stand in for required values that are missing or wrong; complaints about them are dropped with `_unrelated`."""


def _without(raw: Any, paths: list[KeyPath]) -> Any:
    """A copy of `raw` without the values at these paths.

    Required values get a stand-in; an item of a list inside a stage takes the whole list along, a term without its
    type the whole loss, and any other required value that is missing the mapping it is missing from.
    """
    copy = _copied(raw)
    # Each loss once: removing what is gone already would take the stage around it along.
    for path in dict.fromkeys(map(_whole_loss, paths)):
        _remove(copy, path)
    return copy


def _whole_loss(path: KeyPath) -> KeyPath:
    """The path of the loss that holds this value, or the path itself."""
    return path[: path.index("loss") + 1] if path[:1] == ("stages",) and "loss" in path else path


def _remove(raw: Any, path: KeyPath) -> None:
    *parents, last = path or ("",)
    holder = raw
    for part in parents:
        holder = _item(holder, part)
    if (last in _STAND_INS and len(path) == 3) or (last in ("name", "data") and len(path) == 1):
        holder[last] = f"unnamed-{path[1]}" if len(path) == 3 and last == "name" else _copied(_STAND_INS[str(last)])
    elif isinstance(holder, list) and len(path) == 2 and isinstance(last, int):
        holder[last] = {}
    elif isinstance(holder, dict) and last in holder:
        del holder[last]
    elif holder is not None and len(path) > 2:  # None: gone already
        _remove(raw, path[:-1])


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def _item(holder: Any, part: str | int) -> Any:
    """A dict's or list's item, or None."""
    if isinstance(holder, dict):
        return holder.get(part)
    return holder[part] if isinstance(holder, list) and isinstance(part, int) and part < len(holder) else None


def _unrelated(found: list[Problem], wrong: list[Problem]) -> list[Problem]:
    """The contradictions that cannot come from a wrong value having been left out: those that are not about it, what
    holds it, or, within a part of a stage, a value beside it."""

    def related(own: KeyPath, other: Problem) -> bool:
        beside = len(own) > 3 and own[:-1] == other.path[:-1] and not other.unknown_key
        return beside or own[: len(other.path)] == other.path or other.path[: len(own)] == own

    return [problem for problem in found if not any(related(problem.path, other) for other in wrong)]
