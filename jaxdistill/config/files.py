"""Files, directories and assets that a run names and that are not there."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jaxdistill.config.data_schema import (
    ASSET_SPLITS,
    DATA_FORMATS,
    LIST_FORMATS,
    TAGGED_FORMATS,
    TEXT_FORMATS,
    DataConfig,
)
from jaxdistill.config.defaults import named_sources, stage_data
from jaxdistill.config.model_schema import StudentConfig, TeacherConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, did_you_mean
from jaxdistill.config.schema import PREVIOUS, Run, StageConfig


def kind_of(text: str | Path) -> Literal["file", "directory", "missing"]:
    """What a path leads to; what cannot be looked at (no permission, an impossible name) counts as missing."""
    try:
        mode = Path(text).expanduser().stat().st_mode
    except (OSError, ValueError, RuntimeError):
        return "missing"
    return "directory" if stat.S_ISDIR(mode) else "file"


def unusable_directory(text: str) -> str | None:
    """Why a path cannot be a directory to write in, as far as its name tells."""
    if not text.strip() or "\0" in text:
        return "is no path"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return "names a home directory that is not known"
    path = Path(text)
    if kind_of(path) == "file":
        return "is a file"
    above = next((parent for parent in path.parents if kind_of(parent) == "file"), None)
    return f"lies below {above}, a file" if above else None


def looks_local(text: str) -> bool:
    """Whether text is a path and no hub id: begins with `.`, `~` or `/`, is a directory, or has two slashes or more."""
    return text.startswith((".", "~", "/")) or text.count("/") > 1 or kind_of(text) == "directory"


def missing_files(run: Run) -> list[Problem]:
    """Data files and assets that are not there, and model directories that are not there or hold no model."""
    problems = list(_missing_data(run.data, ("data",), None))
    if run.tokenizer is not None and looks_local(run.tokenizer):
        problems += _missing_directory(run.tokenizer, ("tokenizer",))
    names = {PREVIOUS, *(stage.name for stage in run.stages)}
    for index, stage in enumerate(run.stages):
        path: KeyPath = ("stages", index)
        if stage.data:
            problems += _missing_data(stage_data(run, stage), (*path, "data"), set(stage.data))
        for place, reference in _references(stage, path):
            problems += _missing_model(reference, place, names)
    return problems


def _references(
    stage: StageConfig, path: KeyPath
) -> Iterator[tuple[KeyPath, StudentConfig | TeacherConfig | str | None]]:
    """All that a stage names models with, each with its path."""
    yield (*path, "student"), stage.student
    if isinstance(stage.teacher, tuple):
        yield from (((*path, "teacher", index), teacher) for index, teacher in enumerate(stage.teacher))
    else:
        yield (*path, "teacher"), stage.teacher
    if stage.student.warm_start is not None:
        yield (*path, "student", "warm_start", "from_teacher"), stage.student.warm_start.from_teacher


def _missing_model(
    reference: StudentConfig | TeacherConfig | str | None, place: KeyPath, names: set[str]
) -> Iterator[Problem]:
    """A model's directory or asset, where it is not another stage's student."""
    if reference is None or isinstance(reference, str):
        text = None if reference in names else reference
    else:
        known = [name for name, splits in ASSET_SPLITS.items() if not splits]
        if reference.asset is not None and reference.asset not in known:
            yield Problem((*place, "asset"), _not_that_asset(reference.asset, "model", known))
        text, place = reference.pretrained, (*place, "pretrained")
    if text is not None and looks_local(text):
        yield from _missing_directory(text, place) or _missing_config(text, place)


def _not_that_asset(name: str, wanted: str, known: list[str]) -> str:
    what = f"is no {wanted}" if name in ASSET_SPLITS else "is no asset"
    return f"'{name}' {what}; expected one of {', '.join(known)}{did_you_mean(name, known)}"


_FORMATS = {
    "causal_lm": (*DATA_FORMATS, *TEXT_FORMATS),
    "masked_lm": (*DATA_FORMATS, *TEXT_FORMATS),
    "token_classification": (*TAGGED_FORMATS, *LIST_FORMATS),
    "question_answering": LIST_FORMATS,
}
"""Of tasks that do not read just the formats of rows."""


def _missing_data(data: DataConfig, path: KeyPath, keys: set[str] | None) -> Iterator[Problem]:
    formats = _FORMATS.get(data.task, DATA_FORMATS)
    for place, source in named_sources(data, keys):
        where = (*path, *place)
        if source.asset is not None:
            yield from _missing_split(source.asset, source.split, where)
        if source.path is None:
            continue
        match kind_of(source.path):
            case "directory":
                yield Problem((*where, "path"), f"{source.path} is a directory; expected a file of rows")
            case "missing":
                yield Problem((*where, "path"), f"{source.path}: no such file{_nearest(source.path)}")
            case _ if Path(source.path).suffix.lower() not in formats:
                expected = ", ".join(formats)
                yield Problem((*where, "path"), f"{source.path}: not a format we read; expected one of {expected}")


def _missing_split(name: str, split: str | None, path: KeyPath) -> Iterator[Problem]:
    """A data set asset that is none, or that has no such split."""
    known = [asset for asset, splits in ASSET_SPLITS.items() if splits]
    if name not in known:
        yield Problem((*path, "asset"), _not_that_asset(name, "data set", known))
    elif split not in (splits := ASSET_SPLITS[name]):
        got = "missing" if split is None else f"got '{split}'"
        hint = did_you_mean(split, splits) if split else ""
        yield Problem((*path, "split"), f"{got}; expected one of {', '.join(splits)}{hint}")


def _missing_directory(text: str, path: KeyPath) -> list[Problem]:
    match kind_of(text):
        case "directory":
            return []
        case "file":
            return [Problem(path, f"{text} is a file; expected a model directory")]
        case _:
            hint = "a local directory, or a hub id as OWNER/NAME"
            return [Problem(path, f"{text}: no such directory{_nearest(text)}; expected {hint}")]


def _missing_config(text: str, path: KeyPath) -> list[Problem]:
    directory = Path(text).expanduser()
    if kind_of(directory / "config.json") == "file":
        return []
    # An unpacked archive, or a stage's directory, has the model one level further down.
    inner = [name for name in _entries(directory) if kind_of(directory / name / "config.json") == "file"]
    hint = f"; did you mean '{directory / inner[0]}'?" if inner else ""
    return [Problem(path, f"{text} has no config.json; expected a Hugging Face model directory{hint}")]


def _nearest(text: str) -> str:
    """A name beside the missing one that is close to it; else where a relative path was looked up."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        return ": nobody's home directory"
    hint = did_you_mean(path.name, _entries(path.parent))
    return hint or ("" if path.is_absolute() else f" in {Path.cwd()}")


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except (OSError, ValueError):
        return []
