"""A stage as the loop trains it: everything it reads resolved, and nothing compiled yet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import optax
from jax.sharding import Mesh

from jaxdistill.config.schema import LoggingConfig, ParallelConfig, PrecisionConfig, StageConfig, TrainConfig
from jaxdistill.distill.objective import Objective
from jaxdistill.distill.teacher import Teacher
from jaxdistill.models import Model
from jaxdistill.parallel import make_mesh
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.train.cost import dispatch_steps
from jaxdistill.train.memory import StepMemory, memory_breakdown
from jaxdistill.train.optimizer import build_optimizer
from jaxdistill.train.program import StepProgram
from jaxdistill.train.state import TrainState, init_state
from jaxdistill.train.step import TrainStep
from jaxdistill.typing import Batch, Params


class Feed(Protocol):
    """What a stage trains on: batches in an order that a seed decides.

    Attributes:
      share: (index, count): this process reads part `index` of `count` equal ones of every batch.
    """

    @property
    def share(self) -> tuple[int, int]: ...

    def iterator(self, *, batch_size: int, seed: int, steps: int, positions: Sequence[Any] | None = None) -> Any:
        """This process's part of the batches of the whole stage.

        Its `get_state()` is JSON. `positions`: the states of all parts, in their order, to continue where they stood;
        there may have been another number of processes then.

        Raises:
          CheckpointError: so many processes cannot continue where those others stood.
        """
        ...

    def longest(self, batch_size: int) -> Batch:
        """A batch that needs as much memory as any."""
        ...

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """How many examples and how many real tokens a batch on the host holds."""
        ...


@dataclass(frozen=True)
class Job:
    """One stage with everything it reads resolved and nothing compiled yet.

    `initial_params` is called once, and only if there is no checkpoint to continue from. `validate` measures the
    student by its parameters and its teachers', both placed as the step wants them. `steps_per_epoch`: None if nobody
    knows; `tokens_per_step`: real ones of an average batch, None likewise.
    """

    title: str
    directory: Path
    config: StageConfig
    seed: int
    student: Model
    initial_params: Callable[[], Params]
    teachers: tuple[Teacher, ...]
    teacher_params: tuple[Params, ...]
    objective: Objective
    feed: Feed
    total_steps: int
    steps_per_epoch: int | None
    validate: Callable[[Params, Sequence[Params]], dict[str, float]]
    parallel: ParallelConfig
    precision: PrecisionConfig
    logging: LoggingConfig
    run_name: str
    fingerprints: dict[str, str] = field(default_factory=dict)
    tokens_per_step: float | None = None


def make_step(
    job: Job, mesh: Mesh, program: type[StepProgram] = StepProgram
) -> tuple[TrainStep, GuardedTransformation, optax.Schedule]:
    """The stage's compiled step, with the optimizer and schedule it was made from; repeats of a stage share it.

    `program`: what the step compiles, which says what kind of state it takes.
    """
    settings = (job.config.train, job.total_steps, job.parallel)
    return _make_step(program, job.student, job.teachers, job.objective, *settings, mesh)


@functools.lru_cache(maxsize=1)  # only the stage at hand: what another one compiled is on disk
def _make_step(
    program: type[StepProgram],
    student: Model,
    teachers: tuple[Teacher, ...],
    objective: Objective,
    train: TrainConfig,
    total_steps: int,
    parallel: ParallelConfig,
    mesh: Mesh,
) -> tuple[TrainStep, GuardedTransformation, optax.Schedule]:
    optimizer, schedule = build_optimizer(train, total_steps)
    made = program(student, teachers, objective, optimizer, train.accumulate)
    step = TrainStep(made, mesh, strategy=parallel.strategy, donate=True, teacher_layout=parallel.teacher)
    return step, optimizer, schedule


def fresh_state(job: Job, optimizer: GuardedTransformation, mesh: Mesh) -> TrainState:
    """The student's state before the first step, from the job's initial parameters and its seed."""
    key, projections = jax.random.fold_in(jax.random.key(job.seed), 1), job.objective.projections
    return init_state(job.initial_params(), optimizer, key, mesh, model=job.student, projections=projections)


def steps_per_dispatch(job: Job) -> int:
    """As configured; `auto` goes by the model of what a step takes, so that a resume finds the same number."""
    asked = job.config.train.steps_per_dispatch
    if asked != "auto":
        return asked
    if job.tokens_per_step is None:
        return 1
    tokens = job.tokens_per_step / make_mesh(job.parallel).size
    return dispatch_steps(job.student, job.teachers, tokens=tokens)


def step_memory(job: Job, mesh: Mesh | None = None, *, students: int = 1) -> StepMemory:
    """What the stage's step holds on a device, and what of it settings could save; nothing is compiled or placed.

    `mesh`: of the devices; default, the run's own. `students`: how many the step trains, of the job's shape.
    """
    mesh = mesh or make_mesh(job.parallel)
    step, _, _ = make_step(job, mesh)
    state = step.abstract_state()
    language = job.student.task.endswith("_lm")
    return memory_breakdown(
        student=job.student,
        train=job.config.train,
        parallel=job.parallel,
        precision=job.precision,
        mesh_shape=mesh.shape,
        fused=job.objective.fused is not None if language else None,
        student_params=state.trained,
        opt_state=state.opt_state,
        teacher_params=step.abstract_params(job.teacher_params),
        batch=job.feed.longest(job.config.train.batch_size),
        students=students,
    )
