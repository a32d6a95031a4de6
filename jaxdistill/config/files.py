"""Local files and directories that a run names and that are not there."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jaxdistill.config.defaults import named_sources, stage_data
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, did_you_mean
from jaxdistill.config.schema import DataConfig, Run, StageConfig, TeacherConfig


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
    return "is a file" if kind_of(text) == "file" else None


def looks_local(text: str) -> bool:
    """Whether text is a path and no hub id: begins with `.`, `~` or `/`, is a directory, or has two slashes or more."""
    return text.startswith((".", "~", "/")) or text.count("/") > 1 or kind_of(text) == "directory"


def missing_files(run: Run) -> list[Problem]:
    """Data files that are not there, and model directories that are not there or hold no model."""
    problems = list(_missing_data(run.data, ("data",), None))
    if run.tokenizer is not None and looks_local(run.tokenizer):
        problems += _missing_directory(run.tokenizer, ("tokenizer",))
    names = {stage.name for stage in run.stages}
    for index, stage in enumerate(run.stages):
        path: KeyPath = ("stages", index)
        if stage.data:
            problems += _missing_data(stage_data(run, stage), (*path, "data"), set(stage.data))
        for place, text in _models(stage, path, names):
            if looks_local(text):
                problems += _missing_directory(text, place) or _missing_config(text, place)
    return problems


def _models(stage: StageConfig, path: KeyPath, names: set[str]) -> Iterator[tuple[KeyPath, str]]:
    """The model directories and hub ids that a stage names, with their paths."""
    if stage.student.pretrained is not None:
        yield (*path, "student", "pretrained"), stage.student.pretrained
    several = isinstance(stage.teacher, tuple)
    written = list(stage.teacher) if isinstance(stage.teacher, tuple) else [stage.teacher]
    places: list[KeyPath] = [(*path, "teacher", i) if several else (*path, "teacher") for i in range(len(written))]
    if stage.student.warm_start is not None:
        written = [*written, stage.student.warm_start.from_teacher]
        places.append((*path, "student", "warm_start", "from_teacher"))
    for place, teacher in zip(places, written, strict=True):
        if isinstance(teacher, TeacherConfig) and teacher.pretrained is not None:
            yield (*place, "pretrained"), teacher.pretrained
        elif isinstance(teacher, str) and teacher not in names:
            yield place, teacher


def _missing_data(data: DataConfig, path: KeyPath, keys: set[str] | None) -> Iterator[Problem]:
    for place, source in named_sources(data, keys):
        if source.path is None:
            continue
        match kind_of(source.path):
            case "directory":
                yield Problem((*path, *place, "path"), f"{source.path} is a directory; expected a file of rows")
            case "missing":
                yield Problem((*path, *place, "path"), f"{source.path}: no such file{_nearest(source.path)}")


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
