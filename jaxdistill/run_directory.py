"""Where things are in a run directory, for whoever reads one: stages to come, reports, exports, predictions.

RUN/summary.json, config.yaml, report.html, inference.json
RUN/stages/STAGE[.PHASE][/seed-K]/{stage.json, student/, metrics.jsonl, checkpoints/STEP/, tensorboard/}
RUN/stages/STAGE/search.json, rounds/N/: of a stage that is a search
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.errors import CheckpointError, ModelError

_SEED = re.compile(r"seed-(\d+)")
_IN_RECORD = {"checkpoint", "identity", "row"}


def is_run_directory(path: Path) -> bool:
    """Whether `path` looks like what `jaxdistill run` writes."""
    return (path / "stages").is_dir() and (config_path(path).is_file() or (path / "summary.json").is_file())


def config_path(run_directory: Path) -> Path:
    """The resolved configuration that the run was begun with."""
    return run_directory / "config.yaml"


def record_path(stage_directory: Path) -> Path:
    """What is written last of a stage: it has finished when this is there."""
    return stage_directory / "stage.json"


def read_record(stage_directory: Path) -> dict[str, Any] | None:
    """The record of a finished stage ({"checkpoint", "identity", "row"}), or None if it has not finished.

    Raises:
      CheckpointError: a record that cannot be read.
    """
    path = record_path(stage_directory)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not record.keys() >= _IN_RECORD:
            raise ValueError(f"expected {', '.join(sorted(_IN_RECORD))}")
    except FileNotFoundError:
        return None
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise CheckpointError(f"{path}: damaged ({error}); delete this file to let the stage finish again") from error
    return record


def handed_on(stage_directory: Path, record: dict[str, Any]) -> Path:
    """The checkpoint that a finished stage hands to others."""
    return stage_directory / "checkpoints" / str(record["checkpoint"])


def load_summary(run_directory: Path) -> dict[str, Any]:
    """The content of RUN/summary.json, with what was measured of its models (`inference`) in their rows.

    Of a run that has not finished a stage yet, one without stages.

    Raises:
      CheckpointError: `run_directory` is not a run directory, or its summary.json is not readable JSON.
    """
    path = run_directory / "summary.json"
    if not path.is_file():
        if is_run_directory(run_directory):
            return {"name": run_directory.resolve().name, "stages": []}
        raise CheckpointError(
            f"{run_directory}: not a run directory (no summary.json, no stages/); "
            "give the directory that `jaxdistill run` wrote"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise CheckpointError(f"{path}: not valid JSON ({error}); `jaxdistill run` writes it again") from error
    rows = summary.get("stages") if isinstance(summary, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CheckpointError(f"{path}: expected an object with a list of stages; `jaxdistill run` writes it again")
    measured = read_inference(run_directory)
    for row in rows:
        if row.get("key") in measured:
            row["inference"] = measured[row["key"]]
    return summary


def inference_path(run_directory: Path) -> Path:
    """What `jaxdistill bench --inference` measured of the run's models, by their keys in the summary."""
    return run_directory / "inference.json"


def read_inference(run_directory: Path) -> dict[str, Any]:
    """Figures by key; empty if nothing has been measured.

    Raises:
      CheckpointError: the file cannot be read.
    """
    path = inference_path(run_directory)
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(figures, dict):
            raise ValueError("expected an object")
    except FileNotFoundError:
        return {}
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise CheckpointError(f"{path}: damaged ({error}); delete it and measure again") from error
    return figures


def stage_of(student: Path) -> tuple[Path, str] | None:
    """The run directory and the key of the stage whose student this directory is; None if it is none's."""
    student = student.resolve()
    for run in student.parents:
        if is_run_directory(run) and student.is_relative_to(run / "stages"):
            return run, str(student.relative_to(run / "stages").parent)
    return None


def stage_keys(run_directory: Path) -> list[str]:
    """Keys (`STAGE` or `STAGE/seed-K`) of the stages that have a directory, seeds in numeric order."""
    keys = []
    for stage in sorted(path for path in (run_directory / "stages").glob("*") if path.is_dir()):
        seeds = sorted(
            (int(match[1]), path.name) for path in stage.glob("seed-*") if (match := _SEED.fullmatch(path.name))
        )
        keys += [f"{stage.name}/{name}" for _, name in seeds] or [stage.name]
    return keys


def stage_directory(run_directory: Path, stage: str, *, seed: int | None = None) -> Path:
    """The directory of one stage; of a repeated one the first seed's (the one handed on) unless `seed` says which.

    Raises:
      CheckpointError: no such run, stage or seed; the message lists what there is.
    """
    keys = stage_keys(run_directory)
    if not is_run_directory(run_directory):
        raise CheckpointError(
            f"{run_directory}: not a run directory (no stages/); give the directory that `jaxdistill run` wrote"
        )
    wanted = stage if seed is None else f"{stage.partition('/')[0]}/seed-{seed}"
    if wanted in keys:
        return run_directory / "stages" / wanted
    seeds = [key for key in keys if key.partition("/")[0] == stage]
    if seed is None and seeds:
        return run_directory / "stages" / _first_seed(run_directory, stage, seeds)
    raise CheckpointError(f"{run_directory}: no stage {wanted!r}; this run has {', '.join(keys) or 'none yet'}")


def student_directory(run_directory: Path, stage: str, *, seed: int | None = None) -> Path:
    """The Hugging Face directory of a finished stage's student.

    Raises:
      CheckpointError: no such stage, or it has not finished.
    """
    directory = stage_directory(run_directory, stage, seed=seed)
    return _finished_student(directory)


def resolve_model(source: str) -> str:
    """What a command's MODEL_OR_STAGE means: a local directory, or else `source` itself as a hub id.

    A Hugging Face directory is itself; RUN/stages/STAGE[/seed-K] and RUN:STAGE[/seed-K] are that stage's student.

    Raises:
      CheckpointError: a run directory without a stage, or a stage that is missing or unfinished.
      ModelError: a path that is not there.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "config.json").is_file():
            return source
        if is_run_directory(path):
            names = ", ".join(f"{source}:{key}" for key in stage_keys(path)) or "none yet"
            raise CheckpointError(f"{source}: a run directory; say which stage ({names})")
        if path.resolve().parent.name == "stages" and is_run_directory(path.resolve().parents[1]):
            return str(student_directory(path.resolve().parents[1], path.resolve().name))
        if _SEED.fullmatch(path.name) or (path / "student").is_dir():
            return str(_finished_student(path))
        return source
    run, colon, stage = source.rpartition(":")
    if colon and Path(run).is_dir():
        return str(student_directory(Path(run), stage))
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or path.exists():
        raise ModelError(f"{source}: no such model directory; give a Hugging Face directory, RUN_DIR:STAGE or a hub id")
    return source


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Rows of a stage's metrics.jsonl by rising step; what was logged again after a resume replaces the older row."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in _json_lines(directory / "metrics.jsonl"):
        if isinstance(row.get("step"), int):
            rows[str(row.get("kind")), row["step"]] = row
    return sorted(rows.values(), key=lambda row: row["step"])


def _first_seed(run_directory: Path, stage: str, keys: list[str]) -> str:
    """The key that stands first in the summary: seeds run in the order they are written, not in numeric order."""
    written = [row.get("key") for row in load_summary(run_directory)["stages"] if row.get("name") == stage]
    return next((key for key in written if key in keys), keys[0])


def _finished_student(directory: Path) -> Path:
    student = directory / "student"
    if not (student / "config.json").is_file():
        raise CheckpointError(
            f"{directory}: this stage has no student yet; `jaxdistill run` with the run's config continues it"
        )
    return student


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file: the last one may be torn while a run writes it, or when it was killed."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
