"""`plan`: what a configuration needs of devices that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdistill.cli.arguments import ConfigArgument, Debug, Json, Overrides
from jaxdistill.cli.terminal import open_console, print_json


def plan(
    config: ConfigArgument,
    overrides: Overrides = None,
    target: Annotated[
        str,
        typer.Option(
            help="Devices to compile for: v5e:4x4, v5p:2x2x1, v6e:4x4, h100:8, a100:8, cpu, or cpu:8.",
            show_default=False,
        ),
    ] = "cpu",
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage (repeatable; default: all).")] = None,
    model_config: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=FILE", help="config.json of a model that the configuration names (repeatable)."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="Of one device for an hour, in any currency, to model costs with.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Look for the mesh, rematerialisation and batch that are best and fit.")
    ] = False,
    tries: Annotated[int, typer.Option(min=1, help="Most settings that --search compiles.")] = 6,
    output: Annotated[
        Path | None,
        typer.Option(help="File for --search to write the winning overrides to (default: CONFIG's name .overrides)."),
    ] = None,
    hlo: Annotated[
        Path | None, typer.Option(help="Directory to write the optimised programs' text to.", show_default=False)
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile every stage's real step for devices that are not attached, and say what it takes of them.

    Memory a device and what holds it, FLOPs, bytes between devices, arrays as large as logits; and, modelled from data
    sheets, time and cost. No weight is loaded and nothing is run. TPUs need the extra plan-tpu, GPUs plan-cuda.
    Results are kept, by program and compiler: the second time they are there at once.
    """
    from jaxdistill.config import load_run

    loaded = load_run(config, list(overrides or ()))
    from jaxdistill.plan.request import make_planning

    planning = make_planning(target, model_configs=model_config or (), stages=stage or (), price=price, hlo_dir=hlo)
    console = open_console(stderr=as_json)
    result: dict[str, Any] = {"target": planning.target.text, "libraries": dict(planning.target.libraries)}
    if search:
        from jaxdistill.plan.search import search_run, write_overrides
        from jaxdistill.plan.table import print_plan, print_search

        found = search_run(loaded, planning, console, tries=tries)
        print_search(found.rows, planning.target, console)
        if found.winner is not None:
            print_plan(found.plans, planning.target, console)
        written = write_overrides(found, output or Path(f"{config.stem}.overrides"), config, console)
        result |= {"search": found.to_dict(), "overrides": str(written) if written else None}
    else:
        from jaxdistill.plan.stage import plan_run
        from jaxdistill.plan.table import print_plan

        plans = plan_run(loaded, planning, console)
        print_plan(plans, planning.target, console)
        result["stages"] = plans
    if as_json:
        print_json(result)
