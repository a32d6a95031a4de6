"""The stages of a configuration, or of several variants of it, timed in turns on the stages' own data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from rich.console import Console

from jaxdistill.bench.device import MatmulPeak, device_peak_bytes
from jaxdistill.bench.facts import measured_on
from jaxdistill.bench.processors import peak_resident_bytes
from jaxdistill.bench.runner import Runner, Shapes, StepRunner, TeacherRunner, Turn, plain_job
from jaxdistill.bench.spread import Spread, ratio, spread
from jaxdistill.config import build_chain
from jaxdistill.config.chain import Chain, ChainStage
from jaxdistill.config.schema import Run
from jaxdistill.errors import ConfigError
from jaxdistill.parallel.compilation import empty_compilation_cache
from jaxdistill.stages.prepare import Preparation
from jaxdistill.stages.stage_step import stage_step
from jaxdistill.train.job import Job
from jaxdistill.train.memory import planned_bytes
from jaxdistill.train.out_of_memory import device_memory_limit, is_out_of_memory, out_of_memory_error
from jaxdistill.train.stage_step import StageStep

STEP, TEACHER, PLAIN = "step", "teacher", "plain"
_STEPS = 16


@dataclass(frozen=True)
class Variant:
    """A run and what it is called beside others; `overrides`: what of the configuration it changes."""

    name: str
    overrides: tuple[str, ...]
    run: Run


@dataclass
class _Case:
    """A stage of one variant: what takes turns, and what the turns took. parts: the step's first."""

    variant: Variant
    trained: StageStep
    parameters: int
    parts: dict[str, Runner]
    peak: MatmulPeak
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return self.trained.job

    @property
    def step(self) -> StepRunner:
        runner = self.parts[STEP]
        assert isinstance(runner, StepRunner)
        return runner


def bench_stages(
    variants: Sequence[Variant],
    *,
    stages: Sequence[str] = (),
    repeats: int = 5,
    steps: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Time every stage's compiled step, fed by the stage's own pipeline; variants take turns, stage by stage.

    A stage whose teacher has not been trained learns from a fresh one of its shape. Of a sweep, the step of all
    students is timed (of a search, of its first round); a batch's examples count once, and `students` says how many
    learn from each. Nothing is written into the run's directory.

    Args:
      variants: the first is what the others are compared with. A single one is taken apart: its teachers' forward
        passes, and, unless it is a sweep, plain training of the same student, take turns with its step.
      stages: names or keys; default, all of them, of a repeated one the first seed.
      repeats: turns of each.
      steps: optimizer steps of a turn; default, the batches that are sorted by length together, or else 16.
      console: where progress goes.

    Returns:
      What the JSON file holds: {"command", "created", …, "repeats", "stages": [{"stage", "steps", "variants": […]}]},
      every rate as {"median", "min", "max"} over the turns, every comparison as {"ratio", "min", "max"}.

    Raises:
      UserError: anything wrong with a configuration, its data or its models, or no such stage.
    """
    console = console or Console()
    chains = [build_chain(variant.run) for variant in variants]
    chosen = [_chosen(chain, stages) for chain in chains]
    if any(keys != chosen[0] for keys in chosen):
        listed = "; ".join(f"{variant.name}: {', '.join(keys)}" for variant, keys in zip(variants, chosen, strict=True))
        raise ConfigError(f"the variants have different stages ({listed}); choose common ones with --stage")
    preparations = [Preparation(chain, Console(quiet=True), untrained=True) for chain in chains]
    for preparation in preparations:
        preparation.survey()
    rows = []
    for key in chosen[0]:
        peaks: dict[Any, MatmulPeak] = {}
        cases = [_case(*pair, key, peaks) for pair in zip(variants, preparations, strict=True)]
        if len(cases) == 1 and cases[0].job.teachers and cases[0].job.objective.teacher_outputs:
            cases[0].parts |= _parts_of(cases[0])
        rows.append(_bench_stage(key, cases, [chain.stage(key) for chain in chains], repeats, steps, console))
    return {
        "command": "bench",
        **measured_on(),
        "repeats": repeats,
        "stages": rows,
        "device_peak_bytes": device_peak_bytes(),
        "process_peak_bytes": peak_resident_bytes(),
    }


def _chosen(chain: Chain, names: Sequence[str]) -> list[str]:
    """Keys of the stages to time, in the order of the chain.

    Raises:
      ConfigError: a name that no stage has.
    """
    known = {name for stage in chain.stages for name in (stage.name, stage.key)}
    if unknown := [name for name in names if name not in known]:
        there = ", ".join(dict.fromkeys(stage.name for stage in chain.stages))
        raise ConfigError(f"--stage: no stage {', '.join(unknown)}; this configuration has {there}")
    firsts = {stage.name: stage.key for stage in reversed(chain.stages)}
    wanted = {firsts.get(name, name) for name in names or firsts}
    return [stage.key for stage in chain.stages if stage.key in wanted]


def _case(variant: Variant, preparation: Preparation, key: str, peaks: dict[Any, MatmulPeak]) -> _Case:
    """`peaks`: of the devices and dtypes of the variants so far."""
    survey = preparation.surveys[key]
    trained = stage_step(preparation.task, survey)
    with _memory_told(trained):
        runner = StepRunner(trained)
    place = runner.step.mesh, trained.job.student.dtype
    if place not in peaks:
        peaks[place] = MatmulPeak(*place)
    return _Case(variant, trained, survey.parameters, {STEP: runner}, peaks[place])


def _parts_of(case: _Case) -> dict[str, Runner]:
    """What a step is compared with; several students' with its teachers alone, for no plain training is like it."""
    parts: dict[str, Runner] = {TEACHER: TeacherRunner(case.step)}
    if case.trained.students == 1:
        parts[PLAIN] = StepRunner(StageStep(plain_job(case.job)))
    return parts


@contextmanager
def _memory_told(trained: StageStep) -> Iterator[None]:
    """Where a device's memory is too small for a stage, say what holds it and what would need less."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # what JAX raises, compiling or running
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(error, trained.memory(), limit=device_memory_limit()) from error


def _bench_stage(
    key: str, cases: Sequence[_Case], stages: Sequence[ChainStage], repeats: int, steps: int | None, console: Console
) -> dict[str, Any]:
    """All figures of one stage."""
    steps = min(steps or max(map(_sorted_together, stages)), *(case.job.total_steps for case in cases))
    console.print(f"{key}: compiling, then {repeats} turns of {steps} steps", highlight=False)
    try:
        with empty_compilation_cache():
            for case in cases:
                with _memory_told(case.trained):
                    _measure_compilation(case)
            _take_turns(cases, repeats=repeats, steps=steps)
        rows = [_figures(case, cases[0]) for case in cases]
    finally:
        for case in cases:
            for runner in case.parts.values():
                runner.close()
    return {"stage": key, "steps": steps, "variants": rows}


def _sorted_together(stage: ChainStage) -> int:
    """Batches that are a fair sample of the data, where they are sorted by length together."""
    sorts = not stage.data.task.endswith("_lm") and stage.data.batching == "bucketed"
    return stage.data.shuffle_window if sorts else _STEPS


def _measure_compilation(case: _Case) -> None:
    """Seconds to trace and compile the step, and to trace it and read it from the cache; the memory it is to need."""
    for name in ("cold", "cached"):
        begin = time.perf_counter()
        compiled = case.step.compile_longest()
        case.compile_seconds[name] = time.perf_counter() - begin
        case.memory = planned_bytes(compiled)
        jax.clear_caches()


def _take_turns(cases: Sequence[_Case], *, repeats: int, steps: int) -> None:
    """Warm up, then rounds in which everything has one turn; who comes first changes from round to round."""
    entries = [(case, name, runner) for case in cases for name, runner in case.parts.items()]
    for case, _, runner in entries:
        with _memory_told(case.trained):
            runner.settled_turn(steps)
    for index in range(repeats):
        for peak in dict.fromkeys(case.peak for case in cases):
            peak.measure()
        first = index % len(entries)
        for case, name, runner in (*entries[first:], *entries[:first]):
            case.turns.setdefault(name, []).append(runner.settled_turn(steps))


def _figures(case: _Case, baseline: _Case) -> dict[str, Any]:
    """The row of one variant."""
    turns = case.turns[STEP]
    flops = case.step.flops(case.step.seen)
    rates, theirs = _rates(turns), _rates(baseline.turns[STEP])
    work = [_work(turn, flops) for turn in turns]
    achieved = [done / turn.wall for done, turn in zip(work, turns, strict=True)]
    tokens, places = sum(turn.tokens for turn in turns), sum(turn.places for turn in turns)
    return {
        "variant": case.variant.name,
        "overrides": list(case.variant.overrides),
        "students": case.trained.students,
        "parameters": case.parameters,
        "teachers": len(case.job.teachers),
        "batch_size": case.job.config.train.batch_size,
        "steps_per_dispatch": case.step.per_dispatch,
        "programs": len(case.step.seen),
        **{name: spread(values) for name, values in rates.items()},
        "tokens": tokens,
        "padded_tokens": places,
        "real_token_share": tokens / places,
        "compile_seconds": case.compile_seconds,
        "planned_bytes": case.memory,
        "flops": _flops_of_parts(case, flops),
        "flops_per_second": spread(achieved),
        "matmul_peak_flops_per_second": case.peak.best,
        "share_of_matmul_peak": spread([value / case.peak.best for value in achieved]),
        "parts": _parts(case),
        "against_first": {name: ratio(values, theirs[name]) for name, values in rates.items()},
    }


def _rates(turns: Sequence[Turn]) -> dict[str, list[float]]:
    """What is compared, turn by turn."""
    return {
        "examples_per_second": [turn.examples / turn.wall for turn in turns],
        "examples_per_cpu_second": [turn.examples / turn.cpu for turn in turns],
        "tokens_per_second": [turn.tokens / turn.wall for turn in turns],
        "tokens_per_cpu_second": [turn.tokens / turn.cpu for turn in turns],
        "padded_tokens_per_second": [turn.places / turn.wall for turn in turns],
        "step_seconds": [turn.wall / turn.steps for turn in turns],
        "step_cpu_seconds": [turn.cpu / turn.steps for turn in turns],
    }


def _work(turn: Turn, flops: Mapping[Shapes, int]) -> int:
    return sum(count * flops[shapes] for shapes, count in turn.shapes.items())


def _flops_of_parts(case: _Case, flops: Mapping[Shapes, int]) -> dict[str, float | None]:
    """Mean FLOPs of a step: all of it, the student's three passes, and the rest, which is the teachers'.

    None for the latter two where plain training was not timed beside it.
    """
    turns = case.turns[STEP]
    steps = sum(turn.steps for turn in turns)
    whole = sum(_work(turn, flops) for turn in turns) / steps
    plain = case.parts.get(PLAIN, None if case.job.teachers else case.step)
    if not isinstance(plain, StepRunner):
        return {"step": whole, "student": None, "teachers": None}
    alone = plain.flops(case.step.seen)
    student = sum(_work(turn, alone) for turn in turns) / steps
    return {"step": whole, "student": student, "teachers": whole - student}


def _parts(case: _Case) -> dict[str, Spread] | None:
    """The teachers' share of the step, and the step beside plain training, as far as they were measured; or None."""
    rates = {name: _rates(turns) for name, turns in case.turns.items()}
    found: dict[str, Spread] = {}
    for title, top, bottom in (("teacher_share", TEACHER, STEP), ("distillation_over_plain", STEP, PLAIN)):
        if top in rates and bottom in rates:
            found[title] = ratio(rates[top]["step_seconds"], rates[bottom]["step_seconds"])
            found[f"{title}_cpu"] = ratio(rates[top]["step_cpu_seconds"], rates[bottom]["step_cpu_seconds"])
    alone = {f"{name}_step_seconds": spread(rates[name]["step_seconds"]) for name in (TEACHER, PLAIN) if name in rates}
    return found | alone or None
