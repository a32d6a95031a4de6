"""`jaxdistill cache`: build teacher caches ahead of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxdistill.cli.arguments import Debug, Json
from jaxdistill.cli.terminal import open_console, print_json
from jaxdistill.host_memory import keep_freed_memory

if TYPE_CHECKING:
    from rich.console import Console


def cache(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to set, with dotted keys.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only the cache of this stage (default: of all).")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew what is there, stale or damaged too.")] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="Run directory (default: output_dir of the config, or runs/NAME).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute what teachers say about the training data, once, and keep it on disk.

    For stages with teacher_cache: disk. Kept are a classifier's logits, or a language model's most probable tokens at
    every position. `run` does the same when a cache is missing; this does it ahead, on another machine if need be. The
    same command continues what was killed. Prints where each cache is, its size, and its KL from the whole teacher.
    """
    overrides = list(overrides or ())
    if output_dir is not None:
        overrides.append(f"output_dir={json.dumps(str(output_dir))}")
    from jaxdistill.config import load_run

    loaded = load_run(config, overrides)
    keep_freed_memory()  # before numpy and jax are imported
    from jaxdistill import stages
    from jaxdistill.parallel.distributed import is_lead_host, start

    start()
    console = open_console(stderr=as_json, quiet=not is_lead_host())
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
