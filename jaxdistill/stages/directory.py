"""Writing a run directory: one process at a time, one configuration for ever, one record for each finished stage."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxdistill.atomic import atomic_write_json, atomic_write_text, disk_errors
from jaxdistill.config import differences, dump_yaml, read_yaml, resolved_dict, run_from_dict
from jaxdistill.config.schema import Run
from jaxdistill.errors import CheckpointError, ConfigError, ExternalError
from jaxdistill.run_directory import config_path, handed_on, record_path
from jaxdistill.train.checkpoint import discard_if_damaged


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process; a second one on the same directory is refused at once.

    Raises:
        ExternalError: the directory cannot be created or written, or the disk is full.
        CheckpointError: another process is running in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("wb", buffering=0)
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
        with disk_errors(directory / ".lock", doing="write"):
            handle.write(f"{os.getpid()}\n".encode())
        yield


def settle_config(run: Run, directory: Path) -> None:
    """Write the resolved configuration, or compare with the one that began this directory.

    Raises:
        ConfigError: keys that decide the result differ; one problem for each.
    """
    path = config_path(directory)
    new = resolved_dict(run)
    if path.exists() and any((directory / "stages").glob("*")):  # until a stage has begun, nothing depends on it
        changed = differences(_begun_with(path), new)
        if changed:
            raise ConfigError(
                f"{directory}: this directory was begun with another configuration; give back the old values, "
                "choose another output_dir, or delete the directory",
                *changed,
            )
    atomic_write_text(path, dump_yaml(new))


def _begun_with(path: Path) -> dict[str, Any]:
    """The configuration in a run directory, with every default of today written out."""
    try:
        return resolved_dict(run_from_dict(read_yaml(path)))
    except ConfigError as error:
        raise ConfigError(
            f"{path}: not what a run wrote here ({error.problems[0]}); put it back, or choose another output_dir"
        ) from error


def write_record(stage_directory: Path, record: dict[str, Any]) -> None:
    """Mark a stage as finished: the last thing written of it (`run_directory.read_record` reads it)."""
    atomic_write_json(record_path(stage_directory), record)


def reopen_if_damaged(stage_directory: Path, record: dict[str, Any]) -> str | None:
    """Check the checkpoint that a finished stage hands on; if it is damaged, let the stage go on from before it.

    The stage then loses its record and is trained again from an older whole checkpoint, or from its beginning: the
    same parameters come out.

    Returns:
      What was wrong and what follows, or None if the checkpoint is whole.
    """
    checkpoint = handed_on(stage_directory, record)
    warning = discard_if_damaged(checkpoint.parent, record["checkpoint"])
    if warning is not None:
        record_path(stage_directory).unlink()
    return warning
