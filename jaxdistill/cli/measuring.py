"""`bench`: how fast a configuration trains, or models answer, on the machine at hand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxdistill.cli.arguments import Debug, Json
from jaxdistill.cli.options import refuse_options
from jaxdistill.cli.terminal import open_console, print_json
from jaxdistill.errors import ConfigError, UserError
from jaxdistill.host_memory import keep_freed_memory

if TYPE_CHECKING:
    from rich.console import Console

    from jaxdistill.config.schema import Run

AS_CONFIGURED = "as configured"


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG [KEY=VALUE]... | MODEL_OR_STAGE...",
            help="YAML file of a run, and values to set in it. With --inference: model directories, hub ids, stages "
            "(RUN_DIR:STAGE), or a whole RUN_DIR.",
            show_default=False,
        ),
    ],
    inference: Annotated[
        bool, typer.Option("--inference", help="Time forward passes of models instead of training steps.")
    ] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help="Stage of the configuration to time (repeatable; default: all).")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'KEY=VALUE ...'",
            help="A variant of the configuration (repeatable). They take turns, and the first is what the others are "
            "compared with; a single one is compared with the configuration as it is.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of a turn (default: the batches sorted by length together, or 16)."),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Also start each stage twice, and time both to their first step."),
    ] = False,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Of --inference, with commas (default: 1,8,32).", show_default=False)
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Tokens of a text of --inference, with commas (default: 16,64,128).", show_default=False),
    ] = None,
    calls: Annotated[int | None, typer.Option(min=1, help="Calls of a turn of --inference (default: 10).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    cpus: Annotated[
        str | None, typer.Option(help="Processors to stay on, with commas; on a single one, computing has one thread.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write; a chart is written beside it (.svg).")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure speed and memory here: of every stage's training step on its own data, or of trained models.

    Everything that is compared takes turns, so that what slows the machine slows all of it; medians are shown with the
    least and the greatest turn, CPU-seconds beside wall time. Padding is never counted as work done. FLOPs are those of
    the matrix products, counted on the program (its jaxpr), what is computed again left out.

    With --inference: latency (p50, p95) and texts or tokens a second of the compiled forward pass at every batch size
    and length, parameters and size on disk, each beside the first model. What belongs to a run directory is written
    into it, and shown by `jaxdistill report`.
    """
    if output is not None and output.suffix != ".json":
        raise UserError(f"--output: {output}; expected a file whose name ends in .json")
    if cpus is not None:
        from jaxdistill.bench.processors import pin

        pin(_numbers("--cpus", cpus, least=0))
    console = open_console(stderr=as_json)
    if inference:
        training = {"--stage": tuple(stage or ()), "--compare": tuple(compare or ()), "--steps": steps}
        refuse_options({**training, "--restart": restart}, "--inference times models")
        result, chart = _bench_models(targets, batch_sizes, lengths, calls, repeats, console)
    else:
        asked = {"--batch-sizes": batch_sizes, "--lengths": lengths, "--calls": calls}
        refuse_options(asked, "this times training steps")
        result, chart = _bench_run(targets, stage or [], compare or [], steps, repeats, restart, console)
    if output is not None:
        from jaxdistill.atomic import atomic_write_json, atomic_write_text

        atomic_write_json(output, result)
        atomic_write_text(output.with_suffix(".svg"), chart)
    if as_json:
        print_json(result)


def _bench_run(
    targets: list[str],
    stages: list[str],
    compare: list[str],
    steps: int | None,
    repeats: int,
    restart: bool,
    console: Console,
) -> tuple[dict[str, Any], str]:
    """Measurements of a configuration, and their chart."""
    from jaxdistill.config import load_run

    config, overrides = Path(targets[0]), targets[1:]
    changes = [_words(text) for text in compare] or [[]]
    if len(compare) == 1:
        changes.insert(0, [])
    base = load_run(config, overrides)
    runs = [_varied(config, overrides, change) if change else base for change in changes]
    _prepare()
    from jaxdistill.bench.restart import first_step_seconds
    from jaxdistill.bench.tables import print_stages, stages_chart
    from jaxdistill.bench.throughput import Variant, bench_stages

    variants = [
        Variant(" ".join(change) or AS_CONFIGURED, (*overrides, *change), run)
        for change, run in zip(changes, runs, strict=True)
    ]
    result = bench_stages(variants, stages=stages, repeats=repeats, steps=steps, console=console)
    if restart:
        for row in result["stages"]:
            for variant in row["variants"]:
                variant["first_step_seconds"] = first_step_seconds(config, variant["overrides"], stage=row["stage"])
    result["config"] = str(config)
    print_stages(result, console)
    return result, stages_chart(result)


def _varied(config: Path, overrides: list[str], change: list[str]) -> Run:
    """The run with one --compare's overrides.

    Raises:
      ConfigError: what is wrong with it, which --compare it is from.
    """
    from jaxdistill.config import load_run

    try:
        return load_run(config, [*overrides, *change])
    except ConfigError as error:
        raise ConfigError(*(f"--compare {' '.join(change)!r}: {problem}" for problem in error.problems)) from error


def _bench_models(
    sources: list[str],
    batch_sizes: str | None,
    lengths: str | None,
    calls: int | None,
    repeats: int,
    console: Console,
) -> tuple[dict[str, Any], str]:
    """Measurements of models, and their chart."""
    sizes = _numbers("--batch-sizes", batch_sizes, least=1) if batch_sizes else (1, 8, 32)
    tokens = _numbers("--lengths", lengths, least=3) if lengths else None
    _prepare()
    from jaxdistill.bench.inference import CALLS, bench_inference
    from jaxdistill.bench.models import find_models, record
    from jaxdistill.bench.tables import inference_chart, print_inference

    models = find_models(sources)
    result = bench_inference(
        models, batch_sizes=sizes, lengths=tokens, calls=calls or CALLS, repeats=repeats, console=console
    )
    for path in record(models, result):
        console.print(f"written into {path}", highlight=False)
    print_inference(result, console)
    return result, inference_chart(result)


def _prepare() -> None:
    """What has to be set before NumPy and JAX are imported, and before anything is compiled."""
    keep_freed_memory()
    from jaxdistill import data
    from jaxdistill.parallel import use_compilation_cache

    use_compilation_cache(data.default_cache_dir() / "compiled")


def _words(text: str) -> list[str]:
    """The overrides of one --compare.

    Raises:
      UserError: a quotation that does not end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--compare {text!r}: {error}; write KEY=VALUE, several of them with spaces between") from error


def _numbers(option: str, text: str, *, least: int) -> tuple[int, ...]:
    """Different whole numbers with commas between, in their order.

    Raises:
      UserError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise UserError(f"{option}: {text!r}; expected whole numbers from {least} on, with commas between")
    return tuple(dict.fromkeys(map(int, parts)))
