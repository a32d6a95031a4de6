"""One stage's step compiled for devices that are not there, and what the compiled program says of itself."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdistill.atomic import atomic_write_json
from jaxdistill.data import default_cache_dir
from jaxdistill.models import Model
from jaxdistill.parallel import batch_devices
from jaxdistill.plan import hlo
from jaxdistill.plan.targets import Target
from jaxdistill.train.flops import jaxpr_matmul_flops
from jaxdistill.train.job import Job
from jaxdistill.train.memory import device_bytes, planned_bytes
from jaxdistill.train.out_of_memory import is_out_of_memory, out_of_memory_figures
from jaxdistill.train.stage_step import StageStep
from jaxdistill.typing import Batch

_FORMAT = 1
"""Of what is kept on disk: another number makes all of it void."""


@dataclass(frozen=True)
class Arguments:
    """What a step is lowered for: shapes with shardings, and their bytes on one device."""

    state: Any
    teacher_params: tuple[Any, ...]
    batch: Any

    def held(self) -> dict[str, int]:
        """Bytes of one device by what holds them before and after a step."""
        return {
            "teacher": device_bytes(self.teacher_params),
            "student": device_bytes(self.state.params),
            "optimizer": device_bytes(self.state.opt_state),
            "batch": device_bytes(self.batch),
        }


@dataclass(frozen=True)
class Compiled:
    """What a compiled step is known by; bytes are those of one device.

    peak: bytes that the compiler plans for; None where it only says that they do not fit. needed: bytes that it said
    it would need then, if it did. logits_sized: arrays of tokens × vocabulary. unknown_loops: loops counted once
    because nobody knows how often they run. matmul_flops: of the compiled products, without those inside of kernels;
    None where libraries compute them, out of sight.
    """

    fits: bool
    peak: int | None
    needed: int | None
    limit: int | None
    arguments: int
    temporaries: int
    collectives: Mapping[str, int]
    logits_sized: tuple[str, ...]
    unknown_loops: int
    matmul_flops: int | None
    compile_seconds: float


def arguments_of(trained: StageStep, mesh: Mesh) -> Arguments:
    """A step's arguments as shapes, laid out as a run lays them out."""
    step, job = trained.make(mesh), trained.job
    prepared = [
        jax.eval_shape(teacher.prepare, params)
        for teacher, params in zip(job.teachers, job.teacher_params, strict=True)
    ]
    return Arguments(
        trained.abstract_state(mesh), tuple(step.abstract_params(prepared)), step.abstract_batch(longest_batch(job))
    )


def longest_batch(job: Job) -> Batch:
    """The shapes of a global batch of the stage that needs as much memory as any."""
    batch = dict(job.feed.longest(job.config.train.batch_size))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)


def models_of(job: Job) -> list[Model]:
    """The teachers that run in the step; a cached one does not."""
    found = [getattr(teacher, "model", None) for teacher in job.teachers]
    return [model for model in found if model is not None]


def counted_flops(trained: StageStep, mesh: Mesh, arguments: Arguments) -> int:
    """FLOPs of all matrix products of one step, over all devices, counted on its jaxpr."""
    step = trained.make(mesh)
    return jaxpr_matmul_flops(step.jaxpr(arguments.state, arguments.teacher_params, arguments.batch))


def compile_step(
    trained: StageStep,
    mesh: Mesh,
    target: Target,
    arguments: Arguments,
    *,
    cache_dir: Path | None = None,
    hlo_path: Path | None,
) -> Compiled:
    """The step, compiled; what came of the same program before is read back.

    Args:
      trained: the stage's.
      mesh: of the target's devices.
      target: the devices.
      arguments: of `arguments_of`.
      cache_dir: where results are kept (default: the user's cache). The key is the lowered program itself, with the
        target and its compiler's versions, so that nothing stale is ever read.
      hlo_path: where to write the optimised program's text, if anywhere; then it is compiled in any case.
    """
    lowered = trained.make(mesh).lower(arguments.state, arguments.teacher_params, arguments.batch)
    key = [_FORMAT, lowered.as_text(), target.text, sorted(target.libraries.items()), repr(mesh)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = (cache_dir or default_cache_dir() / "plans") / f"{name}.json"
    if hlo_path is None and (kept := _read(path)) is not None:
        return kept
    compiled = _compile(trained.job, mesh, target, lowered, hlo_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, asdict(compiled))
    return compiled


def _read(path: Path) -> Compiled | None:
    """A result kept; None if there is none, or only a part of one."""
    try:
        values = json.loads(path.read_text())
        return Compiled(**{**values, "logits_sized": tuple(values["logits_sized"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _compile(job: Job, mesh: Mesh, target: Target, lowered: Any, hlo_path: Path | None) -> Compiled:
    limit, begin = target.chip.memory, time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        needed, told = out_of_memory_figures(error)
        seconds = time.process_time() - begin
        return Compiled(False, None, needed, told or limit, 0, 0, {}, (), 0, None, seconds)
    seconds = time.process_time() - begin
    text = compiled.as_text()
    if hlo_path is not None:
        hlo_path.parent.mkdir(parents=True, exist_ok=True)
        hlo_path.write_text(text)
    program = hlo.parse(text)
    planned = planned_bytes(compiled)
    # a CPU's compiler says nothing of its temporaries' peak
    peak = planned["peak"] if target.chip.platform == "cpu" else compiled.memory_analysis().peak_memory_in_bytes
    return Compiled(
        fits=limit is None or peak <= limit,
        peak=peak,
        needed=None,
        limit=limit,
        arguments=planned["arguments"],
        temporaries=planned["temporaries"],
        collectives=dict(hlo.collectives(program, devices=mesh.size).bytes),
        logits_sized=tuple(_logits_sized(job, mesh, program)),
        unknown_loops=program.unknown_loops,
        matmul_flops=None if target.chip.platform == "cuda" else hlo.matmul_flops(program),
        compile_seconds=round(seconds, 1),
    )


def _logits_sized(job: Job, mesh: Mesh, program: hlo.Program) -> list[str]:
    """Arrays of the size of a language model's logits; a classifier's are a few numbers a row."""
    if not job.student.task.endswith("_lm"):
        return []
    tokens = longest_batch(job)["input_ids"].size // (batch_devices(mesh) * job.config.train.accumulate)
    models = [job.student, *models_of(job)]
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    widths = {width // part for each in models for width in (each.config.hidden_size,) for part in {1, fsdp}}
    found: dict[str, None] = {}
    for classes in {size for each in models for size in (each.config.vocab_size, -(-each.config.vocab_size // tensor))}:
        found |= dict.fromkeys(hlo.logits_sized(program, tokens=tokens, classes=classes, widths=widths))
    return list(found)
