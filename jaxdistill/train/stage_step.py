"""A stage's step and the state it begins with: of one student, or of all that a sweep trains together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from jaxdistill.train.job import Job, fresh_state, make_step, step_memory
from jaxdistill.train.memory import StepMemory
from jaxdistill.train.state import TrainState
from jaxdistill.train.step import TrainStep
from jaxdistill.train.sweep import SweptStudent, abstract_students, fresh_students, make_swept_step
from jaxdistill.train.swept import CommonObjective


@dataclass(frozen=True)
class StageStep:
    """The step of a stage of one student. Nothing is compiled, placed or drawn before it is asked for.

    job: the stage.
    """

    job: Job

    @property
    def students(self) -> int:
        """How many the step trains."""
        return 1

    def make(self, mesh: Mesh) -> TrainStep:
        """The step over a mesh; asked again, the same one."""
        return make_step(self.job, mesh)[0]

    def fresh(self, mesh: Mesh) -> TrainState:
        """The state before the first step, where the step wants it."""
        step, optimizer, _ = make_step(self.job, mesh)
        return step.put_state(fresh_state(self.job, optimizer, mesh))

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """That state as shapes with shardings."""
        return self.make(mesh).abstract_state()

    def memory(self, mesh: Mesh | None = None) -> StepMemory:
        """As `step_memory`, of all students."""
        return step_memory(self.job, mesh, students=self.students)


@dataclass(frozen=True)
class SweptStep(StageStep):
    """The step of several students.

    job: the stage, with the objective that they have in common. common: that objective, and what differs of it. count:
    how many they are. of_students: they themselves, who are only needed to begin.
    """

    common: CommonObjective
    count: int
    of_students: Callable[[], Sequence[SweptStudent]]

    @property
    def students(self) -> int:
        """How many the step trains."""
        return self.count

    def make(self, mesh: Mesh) -> TrainStep:
        """The step over a mesh; asked again, the same one."""
        return make_swept_step(self.job, self.common, mesh)[0]

    def fresh(self, mesh: Mesh) -> TrainState:
        """Every student's own state before the first step, stacked, where the step wants them."""
        step, optimizer = make_swept_step(self.job, self.common, mesh)
        return step.put_state(fresh_students(self.job, self.of_students(), self.common, optimizer, mesh))

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Those states as shapes with shardings."""
        return abstract_students(self.make(mesh), self.common, self.count)
