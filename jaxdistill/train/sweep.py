"""Training a sweep: several students in the place of one, and the best that each of them has been."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxdistill.parallel import make_mesh, replicate, replicated
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.train.checkpoint import Checkpoints, Restored, load_params
from jaxdistill.train.job import Job, fresh_state, make_step
from jaxdistill.train.learner import Choice, Evaluation
from jaxdistill.train.loop import Trained, train
from jaxdistill.train.optimizer import build_schedule
from jaxdistill.train.step import TrainStep
from jaxdistill.train.swept import CommonObjective, SweptProgram, SweptState, student_of
from jaxdistill.tree import tree_digest
from jaxdistill.typing import Params


@dataclass(frozen=True)
class SweptStudent:
    """One student of a sweep: what messages call it, the job it would be by itself, and its learning rate."""

    label: str
    job: Job
    learning_rate: float


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep comes to: each student at its best, and the best of them.

    values: of each student, the stage's metric at its best; None if it was never finite, or the stage has no metric.
    leader: index of the best student, the first of equals; without a metric the first.
    """

    students: tuple[Trained, ...]
    values: tuple[float | None, ...]
    leader: int


def train_sweep(job: Job, students: Sequence[SweptStudent], common: CommonObjective, console: Console) -> SweepOutcome:
    """Train all students in one compiled step, from the newest whole checkpoint if there is one.

    Their batches are those of `job`, whatever their own seeds, which draw their parameters and their dropout.

    Args:
      job: the stage; `sweep/checkpoints` in its directory holds all students together.
      students: one or more of one shape.
      common: what their objectives, and perhaps others', have in common. As many students of the same common objective
        are trained by the same compiled program.
      console: where progress is shown.

    Raises:
      As `loop.train_stage`.
    """
    sweep = _Sweep(job, tuple(students), common, make_mesh(job.parallel))
    measured = train(job, sweep, console)
    trained = tuple(
        Trained(step, params, tree_digest(params), {**measured, "best_step": step})
        for params, step in sweep.chosen(job.total_steps)
    )
    return SweepOutcome(trained, sweep.values(), sweep.leader())


def hand_on(job: Job, trained: Trained) -> None:
    """Leave a student's parameters as the stage's one checkpoint, as a stage of one student leaves its own."""
    checkpoints = Checkpoints(job.directory / "checkpoints", keep=1, best_mode=None, fingerprints=job.fingerprints)
    checkpoints.save(trained.step, {"params": trained.params}, None)
    checkpoints.close()


def fresh_students(
    job: Job,
    students: Sequence[SweptStudent],
    common: CommonObjective,
    optimizer: GuardedTransformation,
    mesh: Mesh,
) -> SweptState:
    """The students' states before the first step, stacked on a leading axis."""
    states = [fresh_state(student.job, optimizer, mesh) for student in students]
    numbers = common.numbers([student.job.objective for student in students])
    rates = [student.learning_rate / job.config.train.learning_rate for student in students]
    return replicate(SweptState.stacked(states, numbers, rates), mesh)


def abstract_students(step: TrainStep, common: CommonObjective, count: int) -> SweptState:
    """What `fresh_students` returns for `count` of them, as shapes with shardings; `step`: of `make_swept_step`."""
    number = jax.ShapeDtypeStruct((count,), jnp.float32, sharding=replicated(step.mesh))
    states = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=leaf.sharding),
        step.abstract_state(),
    )
    numbers = {name: dict.fromkeys(keys, number) for name, keys in common.varying}
    return SweptState(**vars(states), numbers=numbers, rate=number)


class _Sweep:
    """The students' stacked state, and the parameters with which each was best."""

    def __init__(self, job: Job, students: tuple[SweptStudent, ...], common: CommonObjective, mesh: Mesh) -> None:
        self.job, self.students, self.mesh, self.choice = job, students, mesh, Choice.of(job.config)
        self.step, self._optimizer = make_swept_step(job, common, mesh)
        self._common, self.count = common, len(students)
        # what is logged of several learning rates is that of the first student
        self.schedule = build_schedule(
            replace(job.config.train, learning_rate=students[0].learning_rate), job.total_steps
        )
        self.checkpoints = Checkpoints(
            job.directory / "sweep" / "checkpoints",
            keep=job.config.checkpoint.keep,
            best_mode=None,
            fingerprints={**job.fingerprints, "sweep": " / ".join(student.label for student in students)},
        )
        self._best: list[tuple[float, int] | None] = [None] * len(students)
        self._best_params: Params = {}

    def fresh(self) -> SweptState:
        """Every student's own, stacked."""
        stacked = fresh_students(self.job, self.students, self._common, self._optimizer, self.mesh)
        self._best_params = jax.tree.map(jnp.copy, stacked.params)
        return stacked

    def template(self) -> Any:
        """Of the stacked state, and of the parameters with which each was best."""
        stacked = abstract_students(self.step, self._common, self.count)
        return {"params": stacked.params, "state": stacked}

    def take_up(self, restored: Restored) -> SweptState:
        """The checkpoint's state."""
        self._best = [None if best is None else (best[0], best[1]) for best in restored.extra["best"]]
        self._best_params = restored.state["params"]
        return restored.state["state"]

    def evaluate(self, state: Any, teacher_params: tuple[Params, ...], step: int) -> Evaluation:
        """Every student by itself; one that is better than it ever was asks for a checkpoint.

        Values of student i begin with `i/`; without a number they are those of the best so far.
        """
        every = [
            student.job.validate(student_of(state.params, i), teacher_params) for i, student in enumerate(self.students)
        ]
        improved = np.zeros(len(self.students), bool)
        for index, values in enumerate(every):
            value = math.nan if self.choice.metric is None else values[self.choice.metric]
            best = self._best[index]
            # without a metric the last is handed on; one that is not finite is never best
            if self.choice.metric is None or best is None or self.choice.better(value, best[0]):
                improved[index] = self.choice.metric is None or math.isfinite(value)
            if improved[index]:
                self._best[index] = (value, step)
        self._best_params = _select(jnp.asarray(improved), state.params, self._best_params)
        apart = {f"{index}/{name}": value for index, values in enumerate(every) for name, value in values.items()}
        return Evaluation(every[self.leader()] | apart, self._line(), bool(improved.any()))

    def save(self, state: Any, step: int, *, positions: Any, tally: dict[str, Any]) -> None:
        """All students in one checkpoint."""
        self.checkpoints.save(
            step,
            {"params": self._best_params, "state": state},
            {"parts": positions},
            extra={"tally": tally, "best": self._best},
        )

    def chosen(self, last: int) -> list[tuple[Params, int]]:
        """Each student's best parameters, as they are on disk, and the step they are of."""
        latest = self.checkpoints.latest()
        assert latest is not None, "a stage ends with a save"
        stacked = load_params(self.checkpoints.directory / str(latest))
        steps = [last if best is None else best[1] for best in self._best]
        return [(student_of(stacked, index), step) for index, step in enumerate(steps)]

    def values(self) -> tuple[float | None, ...]:
        """Of each student, the stage's metric where it was best."""
        return tuple(None if best is None or self.choice.metric is None else best[0] for best in self._best)

    def leader(self) -> int:
        """The best student by the stage's metric, the first of equals; without a metric the first."""
        return self.choice.leader(self.values())

    def _line(self) -> str:
        leader = self.leader()
        best = self._best[leader]
        if self.choice.metric is None or best is None:
            return f"{len(self.students)} students"
        return f"best {self.choice.metric} {best[0]:.4f} ({self.students[leader].label})"


@jax.jit
def _select(improved: Any, new: Params, old: Params) -> Params:
    """Of every student the new parameters where it has improved, else the old ones."""

    def leaf(new: Any, old: Any) -> Any:
        return jnp.where(improved.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(leaf, new, old)


def make_swept_step(job: Job, common: CommonObjective, mesh: Mesh) -> tuple[TrainStep, GuardedTransformation]:
    """The step of students of a common objective, and the optimizer, whose learning rate is the stage's own.

    The rounds of a search share it.
    """
    step, optimizer, _ = make_step(replace(job, objective=common.objective), mesh, SweptProgram)
    return step, optimizer
