"""A run written out in full, compared with another, and fingerprinted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.config.problems import dotted
from jaxdistill.config.schema import Run

_OPERATIONAL = {"name", "output_dir", "parallel", "logging"}
_OPERATIONAL_IN_STAGE = {
    ("train", "accumulate"),
    ("train", "log_every"),
    ("train", "remat"),
    ("train", "steps_per_dispatch"),
    ("checkpoint", "every"),
    ("checkpoint", "keep"),
    ("evaluate", "batch_size"),
}
_OPERATIONAL_OF_STAGE = {"fused"}
_ABSENT = object()


def resolved_dict(run: Run) -> dict[str, Any]:
    """The run as plain, YAML-able values with every default written out; `run_from_dict` reads it back."""
    plain = _plain(run)
    plain["output_dir"] = run.output_dir or str(Path("runs") / run.name)
    return plain


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed between two resolved runs, as `dotted.path: old → new`.

    Keys that change how a run is carried out but not what it computes are ignored: name, output_dir, parallel.*,
    logging.*, data.workers, disk_cache.directory, and in each stage fused, train.accumulate, train.log_every,
    train.remat, train.steps_per_dispatch, checkpoint.every, checkpoint.keep and evaluate.batch_size. Stages are matched
    by name.
    """
    old_stages, new_stages = _by_name(old), _by_name(new)
    lines = list(_changed(_science(old), _science(new), ()))
    if old_stages.keys() == new_stages.keys() and list(old_stages) != list(new_stages):
        lines.append(f"stages: order {', '.join(old_stages)} → {', '.join(new_stages)}")
    for name in dict.fromkeys([*old_stages, *new_stages]):
        before, after = old_stages.get(name, _ABSENT), new_stages.get(name, _ABSENT)
        if before is _ABSENT or after is _ABSENT:
            lines.append(f"stages.{name}: {'not there → added' if before is _ABSENT else 'there → removed'}")
        else:
            lines += _changed(before, after, ("stages", name))
    return lines


def fingerprint(obj: Any) -> str:
    """SHA-256 (hex) of a value's canonical JSON: dataclasses, mappings with text keys, lists, numbers, paths, text.

    Raises:
      TypeError: a value that is none of these.
    """
    text = json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as text; whole floats stay floats."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _by_name(resolved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["name"]: _science_of_stage(stage) for stage in resolved.get("stages", [])}


def _science(resolved: dict[str, Any]) -> dict[str, Any]:
    science = {key: value for key, value in resolved.items() if key not in _OPERATIONAL and key != "stages"}
    for key, operational in (("data", "workers"), ("disk_cache", "directory")):
        if isinstance(science.get(key), dict):
            science[key] = {inner: value for inner, value in science[key].items() if inner != operational}
    return science


def _science_of_stage(stage: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {inner: item for inner, item in value.items() if (key, inner) not in _OPERATIONAL_IN_STAGE}
        if isinstance(value, dict)
        else value
        for key, value in stage.items()
        if key not in _OPERATIONAL_OF_STAGE
    }


def _changed(old: Any, new: Any, path: tuple[str | int, ...]) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changed(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
    elif _list_of_dicts(old) and _list_of_dicts(new) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _changed(before, after, (*path, index))
    elif old is _ABSENT or new is _ABSENT or old != new:
        yield f"{dotted(path)}: {_text(old)} → {_text(new)}"


def _list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _text(value: Any) -> str:
    return "not there" if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
