"""A run's plan: every stage's step compiled for a target, and what follows for memory, work, traffic and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from jaxdistill.config import build_chain
from jaxdistill.config.chain import Chain
from jaxdistill.config.problems import did_you_mean
from jaxdistill.config.schema import Run
from jaxdistill.errors import ConfigError
from jaxdistill.models import parameter_count, parameter_shapes
from jaxdistill.parallel import make_mesh, tracing_for
from jaxdistill.plan import formula
from jaxdistill.plan.program import (
    Arguments,
    Compiled,
    arguments_of,
    compile_step,
    counted_flops,
    longest_batch,
    models_of,
)
from jaxdistill.plan.shapes import stage_steps
from jaxdistill.plan.targets import Target
from jaxdistill.stages.loading import Survey
from jaxdistill.train.job import Job
from jaxdistill.train.memory import StepMemory, options
from jaxdistill.train.out_of_memory import NOTHING_LEFT, how_many_fit
from jaxdistill.train.stage_step import StageStep


@dataclass(frozen=True)
class Planning:
    """What a plan is made for, besides the run.

    model_configs: config.json files by the hub id that they stand for. stages: names (none: all). price: of one device
    and hour. cache_dir: where results are kept (None: the user's cache). hlo_dir: where the optimised programs' text is
    written, if anywhere.
    """

    target: Target
    model_configs: Mapping[str, Path]
    stages: tuple[str, ...] = ()
    price: float | None = None
    cache_dir: Path | None = None
    hlo_dir: Path | None = None


def plan_run(run: Run, planning: Planning, console: Console) -> list[dict[str, Any]]:
    """A plan of every stage, in order; repeats of a stage are one.

    Raises:
      UserError: what is wrong with the run, or cannot be laid out on the target.
    """
    chain = build_chain(run)
    chosen = _chosen(chain, planning.stages)
    mesh = make_mesh(run.parallel, devices=planning.target.devices)
    plans: dict[str, dict[str, Any]] = {}
    with tracing_for(mesh):
        made = stage_steps(chain, console, devices=planning.target.devices, model_configs=planning.model_configs)
        for survey, trained in made:
            name = survey.stage.name
            if name in chosen and name not in plans:
                plans[name] = _plan_stage(survey, trained, mesh, planning)
    return list(plans.values())


def _chosen(chain: Chain, names: Sequence[str]) -> set[str]:
    """The stages to plan."""
    known = list(dict.fromkeys(stage.name for stage in chain.stages))
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise ConfigError(
                f"--stage: no stage is named {name!r}; expected one of {listed}{did_you_mean(name, known)}"
            )
    return set(names or known)


def _plan_stage(survey: Survey, trained: StageStep, mesh: Mesh, planning: Planning) -> dict[str, Any]:
    job, arguments = trained.job, arguments_of(trained, mesh)
    hlo_path = planning.hlo_dir / f"{survey.stage.name}.hlo" if planning.hlo_dir is not None else None
    compiled = compile_step(trained, mesh, planning.target, arguments, cache_dir=planning.cache_dir, hlo_path=hlo_path)
    train, batch = job.config.train, longest_batch(job)["input_ids"].shape
    taught = models_of(job)
    plan = {
        "stage": survey.stage.name,
        "students": trained.students,
        "parameters": {
            "student": survey.parameters,
            "teachers": [parameter_count(parameter_shapes(each)) for each in taught],
        },
        "mesh": {"strategy": job.parallel.strategy, **mesh.shape},
        "batch": list(batch),
        "accumulate": train.accumulate,
        "remat": train.remat,
        "fits": compiled.fits,
        "compile_seconds": compiled.compile_seconds,
        "memory": _memory(compiled, arguments, trained.memory(mesh)),
        "flops": _flops(trained, mesh, arguments) | {"compiled_on_device": compiled.matmul_flops},
    }
    if compiled.peak is not None:
        plan["collectives"] = _collectives(job, mesh, compiled)
        plan["logits_sized"] = list(compiled.logits_sized)
        plan["modelled"] = _modelled(plan, compiled, mesh, planning)
    return plan


def _memory(compiled: Compiled, arguments: Arguments, step: StepMemory) -> dict[str, Any]:
    """Bytes of one device: the peak, what is known of it, and, if it is too much, the settings that need less."""
    held = arguments.held()
    found: dict[str, Any] = {"limit": compiled.limit, "peak": compiled.peak, **held}
    if compiled.peak is not None:
        found["working"] = max(0, compiled.peak - sum(held.values()))
    if compiled.peak is not None and compiled.limit is not None:
        found["margin"] = compiled.limit - compiled.peak
    return found if compiled.fits else found | _shortage(compiled, step)


def _shortage(compiled: Compiled, step: StepMemory) -> dict[str, Any]:
    """What is needed, as far as the compiler says so, and the settings that need less."""
    figures, needed = step.figures(), compiled.peak or compiled.needed
    goal = figures.total * (compiled.limit or 0) // needed if needed else None
    listed = options(step, goal)
    if not listed:
        verdict = NOTHING_LEFT
    elif goal is None:
        verdict = "how many of them are enough is not known: the compiler does not say what is needed"
    else:
        verdict = how_many_fit(step, listed, goal)
    settings = [
        {"setting": option.setting, "saves": option.saving, "remark": option.remark.lstrip("; ")} for option in listed
    ]
    return {"needed": needed, "estimate": asdict(figures), "settings": settings, "verdict": verdict}


def _flops(trained: StageStep, mesh: Mesh, arguments: Arguments) -> dict[str, Any]:
    """One update's, of all students and over all devices: counted, and by the formula."""
    job = trained.job
    rows, length = longest_batch(job)["input_ids"].shape[-2:]
    counted = counted_flops(trained, mesh, arguments)
    textbook = formula.step_flops(job.student, models_of(job), rows=rows, length=length, students=trained.students)
    return {"counted": counted, "formula": textbook, "over_formula": counted / textbook}


def _collectives(job: Job, mesh: Mesh, compiled: Compiled) -> dict[str, Any]:
    """Bytes that one device receives in a step, by kind, and beside the least that sharing parameters takes."""
    found: dict[str, Any] = {"bytes": dict(compiled.collectives), "total": sum(compiled.collectives.values())}
    if mesh.shape["fsdp"] > 1:
        bound = formula.fsdp_bytes(
            job.student,
            models_of(job),
            devices=mesh.shape["fsdp"],
            itemsize=job.student.dtype.itemsize,
            micro_batches=job.config.train.accumulate,
        )
        found |= {"fsdp_bound": bound, "over_bound": found["total"] / bound}
    if compiled.unknown_loops:
        found["unknown_loops"] = compiled.unknown_loops
    return found


def _modelled(plan: Mapping[str, Any], compiled: Compiled, mesh: Mesh, planning: Planning) -> dict[str, Any] | None:
    """From data sheets: nothing is faster or cheaper than this."""
    roof = formula.roofline(
        planning.target.chip,
        flops=plan["flops"]["counted"] / mesh.size,
        arguments=compiled.arguments,
        temporaries=compiled.temporaries,
        collectives=compiled.collectives,
    )
    if roof is None:
        return None
    tokens = plan["batch"][-2] * plan["batch"][-1]
    money = formula.per_day(roof.seconds, tokens=tokens, devices=mesh.size, price=planning.price)
    return {"compute": roof.compute, "memory": roof.memory, "network": roof.network, **money}
