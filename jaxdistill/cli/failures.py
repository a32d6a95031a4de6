"""Every way a command can end badly: one line on stderr that says what to do, and its exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from jaxdistill.errors import ConfigError, JaxdistillError

_OUTSIDE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
    errno.ETIMEDOUT: "check the network",
    errno.ECONNREFUSED: "check the network",
    errno.ECONNRESET: "check the network",
    errno.ENETUNREACH: "check the network",
    errno.EHOSTUNREACH: "check the network",
}
_DISK_FULL = ("ENOSPC", "No space left on device")
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")
INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell says SIGINT and SIGPIPE


def report_failure(error: BaseException, *, debug: bool) -> int:
    """Say on stderr what went wrong, with the traceback if `debug`; returns the exit status.

    2: the user's mistake; 3: diverged; 4: an outside resource; 130, 143: interrupted; 1: our fault.
    """
    if debug:
        traceback.print_exception(error)
    lines, status = _explained(error)
    for line in lines:
        print(f"error: {line}" if status not in (1, INTERRUPTED) else line, file=sys.stderr)
    return status


def silence_stdout() -> None:
    """After a broken pipe: let the interpreter's last flush go nowhere instead of failing once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: BaseException) -> tuple[list[str], int]:
    """What to print, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"], INTERRUPTED
    if isinstance(error, ConfigError):
        return list(error.problems), error.exit_status
    if isinstance(error, JaxdistillError):
        return [str(error)], error.exit_status
    if _is_usage_error(error):
        return [_usage(error)], 2
    outside = _outside_resource(error)
    if outside is not None:
        return [outside], 4
    first = str(error).strip().partition("\n")[0]
    return [f"internal error: {type(error).__name__}: {first} (run again with --debug for the traceback)"], 1


def _is_usage_error(error: BaseException) -> bool:
    """Whether this is click's: told by its interface, since typer carries its own copy of click from 0.26 on."""
    return callable(getattr(error, "format_message", None)) and hasattr(error, "exit_code")


def _usage(error: BaseException) -> str:
    message = " ".join(error.format_message().split())  # pyright: ignore[reportAttributeAccessIssue]
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "jaxdistill"
    return f"{message.rstrip('.')} (see `{command} --help`)"


def _outside_resource(error: BaseException) -> str | None:
    """A full disk, a missing permission, no memory: also where a library has wrapped it in an error of its own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _OUTSIDE:
            where = f"{link.filename}: " if link.filename else ""
            return f"{where}{os.strerror(link.errno)}; {_OUTSIDE[link.errno]} and run the same command again"
        text = str(link)
        if any(mark in text for mark in _DISK_FULL):
            return f"{os.strerror(errno.ENOSPC)}; free some space and run the same command again"
        if isinstance(link, MemoryError) or any(mark in text for mark in _OUT_OF_MEMORY):
            return (
                "out of memory; use a smaller batch_size or max_length, or split the batch with train.accumulate, "
                "and run the same command again"
            )
        link = link.__cause__ or link.__context__
    return None
