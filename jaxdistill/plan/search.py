"""The best settings that fit: candidates ranked by the time they must take, the impossible left out, the rest compiled.

What is kept between steps, and the least time (the formula's FLOPs, what is computed again, what must travel), need no
compiler. Compiled are the quickest of those that may fit, one after the other, until one does: a no comes fast.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from jaxdistill.atomic import atomic_write_text
from jaxdistill.config import build_chain
from jaxdistill.config.schema import Run
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import batch_devices, make_mesh, tracing_for
from jaxdistill.plan.formula import least_seconds
from jaxdistill.plan.program import longest_batch, models_of
from jaxdistill.plan.shapes import stage_steps
from jaxdistill.plan.stage import Planning, plan_run
from jaxdistill.train.memory import StepMemory
from jaxdistill.train.stage_step import StageStep

_REMAT = ("none", "names", "dots", "full")
_BATCHES = (0.25, 0.5, 1.0, 2.0, 4.0)
_MOST_TENSOR = 8
_ESTIMATE_ERRS = 1.5
"""By how much the estimate of a step's memory may be too large."""


@dataclass(frozen=True)
class Candidate:
    """Settings to try; batch: by how much every stage's batch is multiplied; cache: `teacher_cache` of every stage."""

    data: int
    fsdp: int
    tensor: int
    remat: str = "none"
    batch: float = 1.0
    cache: str | None = None

    def of(self, run: Run) -> Run:
        """The run with these settings."""
        stages = tuple(
            replace(
                stage,
                train=replace(stage.train, remat=self.remat, batch_size=round(stage.train.batch_size * self.batch)),
                teacher_cache=self.cache or stage.teacher_cache,
            )
            for stage in run.stages
        )
        parallel = replace(run.parallel, data=self.data, fsdp=self.fsdp, tensor=self.tensor)
        return replace(run, parallel=parallel, stages=stages)

    def overrides(self, run: Run) -> list[str]:
        """What `jaxdistill run` takes to run with these settings."""
        lines = [f"parallel.{axis}={getattr(self, axis)}" for axis in ("data", "fsdp", "tensor")]
        for stage in self.of(run).stages:
            lines.append(f"stages.{stage.name}.train.remat={self.remat}")
            if self.batch != 1.0:
                lines.append(f"stages.{stage.name}.train.batch_size={stage.train.batch_size}")
            if self.cache is not None:
                lines.append(f"stages.{stage.name}.teacher_cache={self.cache}")
        return lines


@dataclass(frozen=True)
class Guess:
    """What a candidate needs, uncompiled: bytes kept on one device, an estimate of all, least seconds a token."""

    candidate: Candidate
    kept: int
    estimate: int
    seconds: float


@dataclass
class Search:
    """A search's course: each row is a candidate, what was guessed of it, and how it ended."""

    run: Run
    rows: list[dict[str, Any]]
    winner: Candidate | None = None
    plans: Sequence[dict[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        overrides = self.winner.overrides(self.run) if self.winner else None
        return {"tried": self.rows, "overrides": overrides, "stages": list(self.plans)}


def search_run(run: Run, planning: Planning, console: Console, *, tries: int) -> Search:
    """Compile candidates from the quickest on until one fits, at most `tries` of them.

    Raises:
      ConfigError: nothing can be laid out on the target at all.
    """
    search, compiled, limit = Search(run, []), 0, planning.target.chip.memory
    for guess in sorted(_guesses(run, planning), key=lambda guess: guess.seconds):
        row = {**dataclasses.asdict(guess.candidate), "kept": guess.kept, "estimate": guess.estimate}
        row |= {"seconds_per_million_tokens": guess.seconds * 1e6, "answer": "not tried"}
        search.rows.append(row)
        if limit is not None and (guess.kept > limit or guess.estimate > _ESTIMATE_ERRS * limit):
            row["answer"] = "cannot fit"
        elif search.winner is None and compiled < tries:
            compiled += 1
            _compile(search, guess.candidate, row, planning, console)
    return search


def _compile(search: Search, candidate: Candidate, row: dict[str, Any], planning: Planning, console: Console) -> None:
    """Compile every stage with a candidate's settings, and note how it ended."""
    try:
        plans = plan_run(candidate.of(search.run), planning, console)
    except ConfigError as error:
        row["answer"] = str(error)
        return
    row["peaks"] = [plan["memory"]["peak"] for plan in plans]
    row["answer"] = "does not fit"
    if all(plan["fits"] for plan in plans):
        row["answer"], search.winner, search.plans = "chosen", candidate, plans


def _guesses(run: Run, planning: Planning) -> list[Guess]:
    """Every candidate that can be laid out."""
    guesses: list[Guess] = []
    reason = ""
    for mesh_of, cache in itertools.product(_meshes(len(planning.target.devices)), _caches(run)):
        changed = replace(mesh_of, cache=cache, remat="full").of(run)
        try:
            mesh = make_mesh(changed.parallel, devices=planning.target.devices)
            with tracing_for(mesh):
                made = _stage_steps(changed, planning)
                memories = [trained.memory(mesh) for trained in made]
                for candidate in _variants(run, replace(mesh_of, cache=cache)):
                    if (guess := _guess(candidate, made, memories, mesh, planning)) is not None:
                        guesses.append(guess)
        except ConfigError as error:
            reason = str(error)
    if not guesses:
        raise ConfigError(f"--search: no mesh of {planning.target.text} can share this run; {reason}")
    return guesses


def _stage_steps(run: Run, planning: Planning) -> list[StageStep]:
    chain, quiet = build_chain(run), Console(quiet=True)
    made = stage_steps(chain, quiet, devices=planning.target.devices, model_configs=planning.model_configs)
    by_name = {survey.stage.name: trained for survey, trained in made}
    return [trained for name, trained in by_name.items() if not planning.stages or name in planning.stages]


def _meshes(devices: int) -> Iterator[Candidate]:
    """Every way to share so many devices between the axes by powers of two, and all of them on one."""
    sizes = {2**power for power in range(devices.bit_length())} | {devices}
    for fsdp, tensor in itertools.product(sorted(sizes), repeat=2):
        if devices % (fsdp * tensor) == 0 and tensor <= _MOST_TENSOR:
            yield Candidate(devices // (fsdp * tensor), fsdp, tensor)


def _caches(run: Run) -> tuple[str | None, ...]:
    """As written; and, where teachers' logits can be kept, kept."""
    off = run.teacher_cache == "off" and all(stage.teacher_cache in (None, "off") for stage in run.stages)
    return (None, "memory") if run.data.task == "classification" and off else (None,)


def _variants(run: Run, mesh_of: Candidate) -> Iterator[Candidate]:
    for remat, batch in itertools.product(_REMAT, _BATCHES):
        if all((stage.train.batch_size * batch).is_integer() for stage in run.stages):
            yield replace(mesh_of, remat=remat, batch=batch)


def _guess(
    candidate: Candidate, made: Sequence[StageStep], memories: Sequence[StepMemory], mesh: Mesh, planning: Planning
) -> Guess | None:
    """None if a batch cannot be divided evenly."""
    kept, estimate, seconds, tokens = 0, 0, 0.0, 0
    for trained, memory in zip(made, memories, strict=True):
        job = trained.job
        train = replace(
            job.config.train,
            remat=candidate.remat,
            batch_size=round(job.config.train.batch_size * candidate.batch),
        )
        if train.batch_size % (batch_devices(mesh) * train.accumulate):
            return None
        student = replace(job.student, remat=candidate.remat)
        figures = replace(memory, train=train, student=student).figures()
        kept = max(kept, figures.student_params + figures.opt_state + figures.teacher_params)
        estimate = max(estimate, figures.total)
        rows, length = longest_batch(job)["input_ids"].shape[-2:]
        rows = round(rows * candidate.batch)
        seconds += least_seconds(
            student,
            models_of(job),
            chip=planning.target.chip,
            mesh_shape=mesh.shape,
            rows=rows,
            length=length,
            micro_batches=train.accumulate,
            students=trained.students,
        )
        tokens += rows * length
    return Guess(candidate, kept, estimate, seconds / tokens)


def write_overrides(search: Search, path: Path, config: Path, console: Console) -> Path | None:
    """Write the winner's overrides, one a line, and say how to use them; None, and a line why, without a winner."""
    if search.winner is None:
        console.print("nothing that was tried fits; take more devices, --tries more, or a smaller student or teacher")
        return None
    atomic_write_text(path, "\n".join(search.winner.overrides(search.run)) + "\n")
    console.print(f"jaxdistill run {config} $(cat {path})", highlight=False, markup=False, soft_wrap=True)
    return path
