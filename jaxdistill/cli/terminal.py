"""What commands print to: a console for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from jaxdistill.cli.failures import BROKEN_PIPE, silence_stdout

if TYPE_CHECKING:
    from rich.console import Console


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console; where its output is no terminal, wide enough that no table is folded."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with 1, which is our own fault's status
            silence_stdout()
            raise SystemExit(BROKEN_PIPE)

    stream = sys.stderr if stderr else sys.stdout
    return PipeConsole(stderr=stderr, quiet=quiet, width=None if stream.isatty() else 140)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
