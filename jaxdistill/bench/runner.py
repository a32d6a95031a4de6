"""A stage's compiled step on the stage's own batches, a turn of several steps at a time."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from jaxdistill.bench.processors import Stopwatch
from jaxdistill.config.loss_schema import CrossEntropyTerm
from jaxdistill.data.stacking import shapes, stack
from jaxdistill.distill.objective import make_objective
from jaxdistill.parallel import make_mesh, put_batch
from jaxdistill.train.dispatch import Groups
from jaxdistill.train.flops import jaxpr_matmul_flops
from jaxdistill.train.job import Job, steps_per_dispatch
from jaxdistill.train.stage_step import StageStep
from jaxdistill.typing import Batch, Params, Signals

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Turn:
    """What a turn took and did.

    examples: as read, however many students learn from each. tokens: real ones; places: padding included. shapes: of
    its batches, how many each.
    """

    wall: float
    cpu: float
    steps: int
    examples: int
    tokens: int
    places: int
    shapes: Counter[Shapes]
    compiled: bool


class Batches:
    """A stage's training batches, from its own pipeline and in its own order; begun again when they would run out."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._left = 0
        self._groups: Groups | None = None

    def ready(self, steps: int, *, most: int) -> Groups:
        """Groups of at most `most` batches, at least `steps` batches in all, which the job has."""
        if self._groups is None or self._left < steps:
            self.close()
            size = self._job.config.train.batch_size
            self._left = self._job.total_steps
            feed = self._job.feed.iterator(batch_size=size, seed=self._job.seed, steps=self._left)
            self._groups = Groups(feed, most=most)
        self._left -= steps
        return self._groups

    def close(self) -> None:
        """End what reads ahead."""
        if self._groups is not None:
            self._groups.close()


class Runner(ABC):
    """Something that is done with every batch of a stage, and how long turns of it take.

    per_dispatch: batches of one shape that go to the device together, at most.
    """

    per_dispatch = 1

    def __init__(self, job: Job) -> None:
        self.job = job
        self.batches = Batches(job)
        self.seen: dict[Shapes, Batch] = {}

    @abstractmethod
    def advance(self, batches: Sequence[Batch]) -> Any:
        """Send batches of one shape to the device; what is returned may not be there yet."""

    @property
    @abstractmethod
    def traces(self) -> int:
        """How often the program has been traced."""

    def turn(self, steps: int) -> Turn:
        """So many batches, the reading of them included, until the device has done the last one."""
        groups = self.batches.ready(steps, most=self.per_dispatch)
        examples = tokens = places = done = 0
        counted: Counter[Shapes] = Counter()
        traces, last = self.traces, None
        watch = Stopwatch()
        while done < steps:
            group = groups.take(steps - done)
            for batch in group:
                more, real = self.job.feed.sizes(batch)
                examples, tokens, places = examples + more, tokens + real, places + batch["input_ids"].size
            key = tuple(shapes(group[0]))
            counted[key] += len(group)
            self.seen.setdefault(key, group[0])
            last = self.advance(group)
            done += len(group)
        jax.block_until_ready(last)
        wall, cpu = watch.read()
        return Turn(wall, cpu, steps, examples, tokens, places, counted, self.traces != traces)

    def settled_turn(self, steps: int) -> Turn:
        """A turn in which nothing was compiled: another one follows until that is so."""
        while (turn := self.turn(steps)).compiled:
            pass
        return turn

    def close(self) -> None:
        """End what reads ahead."""
        self.batches.close()


class StepRunner(Runner):
    """The step that `jaxdistill run` trains a stage with, of all its students, and their state."""

    def __init__(self, trained: StageStep) -> None:
        job, mesh = trained.job, make_mesh(trained.job.parallel)
        super().__init__(job)
        self._trained = trained
        self.step, self.state = trained.make(mesh), trained.fresh(mesh)
        self.teacher_params = self.step.put_params(job.teacher_params)
        self.per_dispatch = steps_per_dispatch(job)

    def advance(self, batches: Sequence[Batch]) -> Any:
        """A step for each of them."""
        if self.per_dispatch == 1:
            self.state, metrics = self.step(self.state, self.teacher_params, batches[0])
        else:
            stacked = stack(batches, self.per_dispatch)
            self.state, metrics = self.step.many(self.state, self.teacher_params, stacked, len(batches))
        return metrics

    @property
    def traces(self) -> int:
        """The step's."""
        return self.step.trace_count

    def compile_longest(self) -> Any:
        """The program of a dispatch, compiled for the batch that needs most memory; nothing runs."""
        longest = self.job.feed.longest(self.job.config.train.batch_size)
        if self.per_dispatch == 1:
            return self.step.lower(self.state, self.teacher_params, longest).compile()
        stacked = stack([longest], self.per_dispatch)
        return self.step.lower_many(self.state, self.teacher_params, stacked, 1).compile()

    def flops(self, batches: Mapping[Shapes, Batch]) -> dict[Shapes, int]:
        """Matrix products of a step on a batch of each shape, by its jaxpr; what is computed again is left out."""
        step = self.step
        if self.job.student.remat != "none":
            student = dataclasses.replace(self.job.student, remat="none")
            job = dataclasses.replace(self.job, student=student)
            step = dataclasses.replace(self._trained, job=job).make(self.step.mesh)
        return {
            key: jaxpr_matmul_flops(step.jaxpr(self.state, self.teacher_params, step.put_batch(batch)))
            for key, batch in batches.items()
        }


class TeacherRunner(Runner):
    """The teachers' part of a step by itself: every signal that the loss reads of them, and nothing else."""

    def __init__(self, taught: StepRunner) -> None:
        super().__init__(taught.job)
        self._mesh = taught.step.mesh
        self._params = taught.step.get_params(taught.teacher_params)
        self._traces = 0
        self._forward = jax.jit(self._signals)

    def advance(self, batches: Sequence[Batch]) -> Any:
        """The teachers' forward passes."""
        (batch,) = batches
        return self._forward(self._params, put_batch(batch, self._mesh))

    @property
    def traces(self) -> int:
        """The forward passes', all together."""
        return self._traces

    def _signals(self, teacher_params: tuple[Params, ...], batch: Batch) -> list[Signals]:
        self._traces += 1
        objective = self.job.objective
        with nullcontext() if self._mesh.size == 1 else jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            return [
                _without_weights(teacher.signals(params, batch, objective.outputs_of(index)))
                for index, (teacher, params) in enumerate(zip(self.job.teachers, teacher_params, strict=True))
            ]


def plain_job(job: Job) -> Job:
    """Training of the same student on the same batches without a teacher: cross-entropy alone."""
    objective = make_objective(
        (CrossEntropyTerm("cross_entropy"),),
        fused="on" if job.objective.fused is not None else "off",
        vocab_size=job.objective.vocab_size,
    )
    return dataclasses.replace(job, teachers=(), teacher_params=(), objective=objective)


def _without_weights(signals: Signals) -> Signals:
    """The signals, of the output layer only what it is applied to: its weights would be copied."""
    return {name: signal["input"] if name == "head" else signal for name, signal in signals.items()}
