"""Arguments that several commands share, and how a command shows examples of its use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to set, with dotted keys.")]
OutputDir = Annotated[
    Path | None, typer.Option(help="Run directory (default: output_dir of the config, or runs/NAME).")
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_STAGE",
        help="Hugging Face directory or hub id, or a stage of a run: RUN_DIR:STAGE or RUN_DIR/stages/STAGE.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; everything else goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]  # read by `main`
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Most texts in one forward pass (default: 64; of a language model 8).")
]
MaxLength = Annotated[int | None, typer.Option(min=3, help="Most tokens of a text (default: the model's positions).")]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut longer texts instead of refusing them (classifiers only).")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


def examples(*commands: str) -> str:
    """An epilog whose lines stay as they are (click's mark for that is a backspace)."""
    return "\n".join(("\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {line}" for line in commands)))
