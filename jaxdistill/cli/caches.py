"""`jaxdistill cache`: build teacher caches ahead of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxdistill.cli.arguments import ConfigArgument, Debug, Json, OutputDir, Overrides
from jaxdistill.cli.beginning import begin
from jaxdistill.cli.terminal import print_json

if TYPE_CHECKING:
    from rich.console import Console


def cache(
    config: ConfigArgument,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Only the cache of this stage (default: of all).")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew what is there, stale or damaged too.")] = False,
    output_dir: OutputDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute what teachers say about the training data, once, and keep it on disk.

    For stages with teacher_cache: disk. Kept are a classifier's logits, or a language model's most probable tokens at
    every position. `run` does the same when a cache is missing; this does it ahead, on another machine if need be. The
    same command continues what was killed. Prints where each cache is, its size, and its KL from the whole teacher.
    """
    loaded, console = begin(config, overrides, output_dir, stderr=as_json)
    from jaxdistill import stages
    from jaxdistill.parallel.distributed import is_lead_host

    rows = stages.build_caches(loaded, stage=stage, rebuild=rebuild, console=console)
    if as_json and is_lead_host():
        print_json({"caches": rows})
    elif not as_json:
        print_caches(rows, console)


def print_caches(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """One line a cache and temperature."""
    from rich.table import Table

    from jaxdistill.report.table import byte_size

    table = Table(title="teacher caches (KL from the whole teacher in nats)", title_justify="left")
    for column in ("stage", "teacher", "rows", "size", "T", "mean KL", "largest KL", "directory"):
        table.add_column(column, justify="left" if column in ("stage", "teacher", "directory") else "right")
    for row in rows:
        for temperature, error in row["kl_error"].items():
            table.add_row(
                row["stage"],
                row["teacher"],
                f"{row['rows']:,}",
                byte_size(row["bytes"]),
                temperature,
                f"{error['mean']:.2e}",
                f"{error['max']:.2e}",
                row["directory"],
            )
    console.print(table)
