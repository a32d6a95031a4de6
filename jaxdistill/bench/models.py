"""Which models `bench --inference` is asked for, and the run directories that its figures are written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill import models
from jaxdistill.atomic import atomic_write_json
from jaxdistill.config import build_chain, read_yaml, run_from_dict
from jaxdistill.errors import CheckpointError
from jaxdistill.report.html import write_report
from jaxdistill.report.table import short_name
from jaxdistill.run_directory import (
    config_path,
    inference_path,
    is_run_directory,
    load_summary,
    read_inference,
    resolve_model,
    stage_of,
    student_directory,
)
from jaxdistill.stages.inputs import Inputs, given_reference


@dataclass(frozen=True)
class NamedModel:
    """A model on disk. run and key: the run directory it belongs to, and the key of its row in the summary there."""

    name: str
    directory: Path
    run: Path | None = None
    key: str | None = None


def find_models(sources: Sequence[str]) -> list[NamedModel]:
    """Model directories, hub ids and stages as `resolve_model` reads them; a run directory is all its models.

    Those are the teachers it was given and the students of its finished stages, of a repeated one the first seed's.

    Raises:
      CheckpointError: a run without a finished stage, or a stage that is missing or unfinished.
      ModelError, ExternalError: a model that is not there, or cannot be fetched.
    """
    found = []
    for source in sources:
        path = Path(source)
        if is_run_directory(path) and not (path / "config.json").is_file():
            found += _models_of_run(path)
            continue
        directory = models.resolve(resolve_model(source))
        run, key = stage_of(directory) or (None, None)
        found.append(NamedModel(source, directory, run, key))
    return found


def _models_of_run(run: Path) -> list[NamedModel]:
    """In the order of the summary."""
    rows = load_summary(run)["stages"]
    if not rows:
        raise CheckpointError(f"{run}: no stage of this run has finished yet, so there is no model to time")
    given: dict[str, Path] = {}
    if any(row.get("given") for row in rows):
        # not as a run is loaded: its data may have gone since
        chain = build_chain(run_from_dict(read_yaml(config_path(run))))
        inputs = Inputs(chain)
        given = {teacher.label: inputs.directory(given_reference(teacher)) for teacher in chain.given}
    found: dict[str, NamedModel] = {}
    for row in rows:
        name, key = str(row["name"]), str(row["key"])
        if name in found:
            continue  # another seed
        directory = given[name] if row.get("given") else student_directory(run, key)
        found[name] = NamedModel(short_name(name), directory, run, key)
    return list(found.values())


def record(named: Sequence[NamedModel], result: Mapping[str, Any]) -> list[Path]:
    """Write what `bench_inference` measured into the run directories of its models, and their reports anew.

    Returns:
      The files with the figures, one for each run.
    """
    written = []
    for run in dict.fromkeys(model.run for model in named if model.run is not None):
        figures = read_inference(run)
        for model, row in zip(named, result["models"], strict=True):
            if model.run == run and model.key is not None:
                figures[model.key] = {
                    **{name: result[name] for name in ("created", "jaxdistill", "jax", "device", "processors")},
                    **{name: result[name] for name in ("repeats", "calls")},
                    "first": result["models"][0]["name"],
                    "parameters": row["parameters"],
                    "bytes": row["bytes"],
                    "cells": row["cells"],
                }
        atomic_write_json(inference_path(run), figures)
        atomic_write_json(run / "summary.json", load_summary(run))
        write_report(run)
        written.append(inference_path(run))
    return written
