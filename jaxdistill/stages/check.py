"""Check a run without training it: the resolved chain, one compiled step of every stage, and its memory."""

from __future__ import annotations

import time
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxdistill.config import build_chain
from jaxdistill.config.schema import Run
from jaxdistill.parallel import make_mesh
from jaxdistill.stages.chain_table import print_chain
from jaxdistill.stages.loading import Survey
from jaxdistill.stages.prepare import Preparation
from jaxdistill.stages.stage_step import stage_step
from jaxdistill.train.memory import planned_bytes


def check(run: Run, *, console: Console | None = None) -> dict[str, Any]:
    """Resolve the whole chain, compile one real step of every stage, run it, and say what memory it needs.

    A stage whose teacher has not been trained yet runs its step with a teacher of the same shape, freshly initialised
    (a cached one with zeros): the program and its memory are the same. Nothing is written but the caches of downloads
    and of tokenised text.

    Args and errors as `execute`.

    Returns:
      {"stages": [{"stage", "parameters", "batch": [B, S], "compile_seconds", "loss", "bytes": {"arguments", "outputs",
      "temporaries", "peak"}}]}, bytes a device, as the compiler plans them.
    """
    console = console or Console()
    chain = build_chain(run)
    preparation = Preparation(chain, console, untrained=True)
    surveys = preparation.survey()
    print_chain(chain, surveys, console)
    table = Table(title="one step of each stage (compiled memory, a device)", title_justify="left")
    for column in ("stage", "batch", "compile s", "loss", "arguments MB", "temporaries MB", "peak MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    rows = []
    for survey in surveys:
        row = _check_stage(preparation, survey)
        rows.append(row)
        table.add_row(
            row["stage"],
            " × ".join(map(str, row["batch"])),
            f"{row['compile_seconds']:.1f}",
            f"{row['loss']:.4f}",
            *(f"{row['bytes'][kind] / 1e6:.1f}" for kind in ("arguments", "temporaries", "peak")),
        )
    console.print(table)
    return {"stages": rows}


def _check_stage(preparation: Preparation, survey: Survey) -> dict[str, Any]:
    """One step on the stage's longest batch."""
    trained = stage_step(preparation.task, survey)
    job, mesh = trained.job, make_mesh(trained.job.parallel)
    step, state = trained.make(mesh), trained.fresh(mesh)
    teacher_params = step.put_params(job.teacher_params)
    batch = step.put_batch(job.feed.longest(job.config.train.batch_size))
    begin = time.perf_counter()
    compiled = step.lower(state, teacher_params, batch).compile()
    seconds = time.perf_counter() - begin
    _, metrics = step(state, teacher_params, batch)
    total, count = jax.device_get(metrics["loss"])
    return {
        "stage": survey.stage.key,
        "parameters": survey.parameters,
        "batch": [job.config.train.batch_size, int(batch["input_ids"].shape[-1])],
        "compile_seconds": seconds,
        "loss": float(total / count) if count else float("nan"),
        "bytes": planned_bytes(compiled),
    }
