"""The run directory: one process at a time, one configuration for ever, one record for each finished stage."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxdistill.atomic import atomic_write_json, atomic_write_text
from jaxdistill.config import differences, dump_yaml, read_yaml, resolved_dict
from jaxdistill.config.schema import Run
from jaxdistill.errors import CheckpointError, ConfigError, ExternalError
from jaxdistill.train.checkpoint import discard_if_damaged


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process; a second one on the same directory is refused at once.

    Raises:
        ExternalError: the directory cannot be created or written.
        CheckpointError: another process is running in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("w")
    except OSError as error:
        raise ExternalError(
            f"{directory}: the run directory cannot be written ({error.strerror}); choose another with "
            "output_dir=DIR or --output-dir DIR"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{directory}: another process is running in this directory; wait for it, or choose another "
                "with output_dir=DIR"
            ) from error
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def settle_config(run: Run, directory: Path) -> None:
    """Write the resolved configuration, or compare with the one that began this directory.

    Raises:
        ConfigError: keys that decide the result differ; one problem for each.
    """
    path = directory / "config.yaml"
    new = resolved_dict(run)
    if path.exists():
        old = read_yaml(path)
        changed = differences(old, new)
        if changed:
            raise ConfigError(
                f"{directory}: this directory was begun with another configuration; give back the old values, "
                "choose another output_dir, or delete the directory",
                *changed,
            )
    atomic_write_text(path, dump_yaml(new))


def read_record(stage_directory: Path) -> dict[str, Any] | None:
    """The record of a finished stage, or None if it has not finished."""
    path = stage_directory / "stage.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); delete this file to let the stage finish again") from error


def write_record(stage_directory: Path, record: dict[str, Any]) -> None:
    """Mark a stage as finished: the last thing written of it."""
    atomic_write_json(stage_directory / "stage.json", record)


def reopen_if_damaged(stage_directory: Path, record: dict[str, Any]) -> str | None:
    """Check the checkpoint that a finished stage hands on; if it is damaged, let the stage go on from before it.

    The stage then loses its record and is trained again from an older whole checkpoint, or from its beginning: the
    same parameters come out.

    Returns:
      What was wrong and what follows, or None if the checkpoint is whole.
    """
    warning = discard_if_damaged(stage_directory / "checkpoints", record["checkpoint"])
    if warning is not None:
        (stage_directory / "stage.json").unlink()
    return warning
