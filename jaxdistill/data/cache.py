"""The user's cache directory, and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def default_cache_dir() -> Path:
    """`$JAXDISTILL_CACHE`, or `~/.cache/jaxdistill`."""
    return Path(os.environ.get("JAXDISTILL_CACHE") or "~/.cache/jaxdistill").expanduser()


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """An empty directory beside `target` that takes its place when the block ends without an error.

    What stood at `target` before is removed. When another process puts its own there at the same moment, the last one
    to finish stays.

    Raises:
      OSError: the disk is full or not writable; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        content = work / "new"
        content.mkdir()
        yield content
        for _ in range(10):
            if target.exists():
                _move_away(target, work)
            try:
                content.rename(target)
                return
            except OSError:
                if not target.exists():
                    raise
        raise FileExistsError(f"{target} is being rewritten by other processes")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move_away(target: Path, work: Path) -> None:
    """Renames `target` into `work`, unless another process was first."""
    old = Path(tempfile.mkdtemp(prefix="old-", dir=work))
    with suppress(FileNotFoundError):
        target.rename(old / "content")
