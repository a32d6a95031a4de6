"""Writes that are wholly there or not there at all, and a failing disk said in one line.

A file is written beside its final place, flushed to the disk, and renamed over it: a reader, or the next start after a
kill, sees the old content or the new one and nothing between. A name that starts with `.` and ends in `.tmp` is what a
killed write left behind; nobody reads it, and `remove_leftovers` deletes it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from jaxdistill.errors import ExternalError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextmanager
def disk_errors(path: Path | str, *, doing: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into an `ExternalError` that says what failed, where and what to do.

    Args:
        path: what was being written, named when the error itself names no file.
        doing: what the program was doing, as in "cannot {doing} PATH".
    """
    try:
        yield
    except OSError as error:
        raise ExternalError(explain(error, path, doing=doing)) from error


def explain(error: OSError, path: Path | str, *, doing: str) -> str:
    """One line for a failed write: what, where, the system's reason, what to do."""
    if error.errno in _FULL:
        advice = "free some space and run the same command again; what was written before is whole"
    elif error.errno in _FORBIDDEN:
        advice = "make it writable or choose another directory"
    elif error.errno in _IN_THE_WAY:
        advice = "something else stands in its place: move that away or choose another directory"
    else:
        advice = "check the disk and run the same command again"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot {doing} {path}: {reason}; {advice}"


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically, creating its directory.

    Raises:
        ExternalError: the disk is full, the directory is not writable, or a file stands where a directory is needed.
    """
    path = Path(path)
    with disk_errors(path, doing="write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically; raises like `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON (see `json_text`) and a newline to `path` atomically; raises like `atomic_write_bytes`."""
    atomic_write_text(path, json_text(value, indent=indent) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that every parser reads: NaN and infinities become null, NumPy and JAX scalars become plain numbers.

    Raises:
        TypeError: `value` holds something that is neither JSON nor a scalar array.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    """`value` with non-finite floats replaced by None and scalar arrays by Python numbers."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append(file: FileIO, data: bytes) -> None:
    """Append all of `data` to an unbuffered file: a disk that fills up takes a part of it and fails at the rest.

    Raises:
        OSError: the disk is full.
    """
    while data:
        data = data[file.write(data) :]


@contextmanager
def new_directory(target: Path | str) -> Iterator[Path]:
    """Build a directory beside `target` and put it in its place when the block ends without an error.

    Yields:
        An empty directory to fill. After the block `target` is that directory and what it was before is gone; after
        an exception `target` is untouched.

    Raises:
        ExternalError: an `OSError` in the block or in the replacement.
    """
    target = Path(target)
    temporary = _temporary(target)
    with disk_errors(target, doing="write"):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            replace_directory(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def replace_directory(source: Path, target: Path) -> None:
    """Rename directory `source` to `target`, which may exist: then it is first moved aside, and deleted afterwards.

    A kill between the two renames leaves no `target`; it never leaves a mixture of the two.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not target.is_dir():
            raise
        aside = target.with_name(f".{target.name}.{os.getpid()}-replaced.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        source.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(target.parent)


def remove_leftovers(directory: Path | str) -> None:
    """Delete what killed writes left in `directory`; only its sole writer may call this."""
    for entry in Path(directory).glob(".*.tmp"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut (where the system can do that)."""
    with suppress(OSError):
        _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
