"""Who learns in a stage's loop: one student here, those of a sweep in `sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optax
from jax.sharding import Mesh

from jaxdistill.config.schema import StageConfig
from jaxdistill.train.checkpoint import Checkpoints, Restored
from jaxdistill.train.job import Job, fresh_state, make_step
from jaxdistill.train.state import TrainState
from jaxdistill.train.step import TrainStep
from jaxdistill.typing import Params

SMALLER_IS_BETTER = ("loss", "kl", "perplexity")


@dataclass(frozen=True)
class Evaluation:
    """What was measured on validation: values to record, a line to show, and whether a checkpoint is due for it."""

    values: dict[str, float]
    line: str
    improved: bool


class Learner(Protocol):
    """What a loop needs of those it trains.

    Attributes:
      step: the compiled step.
      schedule: learning rate by number of updates.
      checkpoints: of the stage, written by the loop.
      count: how many students the step trains.
    """

    step: TrainStep
    schedule: optax.Schedule
    checkpoints: Checkpoints
    count: int

    def fresh(self) -> TrainState:
        """The state before the first step."""
        ...

    def template(self) -> Any:
        """Shapes, with shardings, of what a checkpoint holds."""
        ...

    def take_up(self, restored: Restored) -> TrainState:
        """The state of a checkpoint that is continued from."""
        ...

    def evaluate(self, state: TrainState, teacher_params: tuple[Params, ...], step: int) -> Evaluation:
        """Measure on validation."""
        ...

    def save(self, state: TrainState, step: int, *, positions: Any, tally: dict[str, Any]) -> None:
        """Write a checkpoint; `positions` and `tally` are the loop's own."""
        ...


@dataclass(frozen=True)
class Choice:
    """By which metric of validation the best is told; None: there is no best."""

    metric: str | None

    @classmethod
    def of(cls, config: StageConfig) -> Choice:
        """The stage's."""
        best = config.checkpoint.best
        return cls(None if best == "last" else best)

    @property
    def mode(self) -> Any:
        """As `Checkpoints` takes it."""
        return None if self.metric is None else ("min" if self.metric in SMALLER_IS_BETTER else "max")

    def better(self, new: float, old: float) -> bool:
        """Whether the new value beats the old one."""
        return new < old if self.mode == "min" else new > old

    def leader(self, values: Sequence[float | None]) -> int:
        """Index of the best of several, the first of equals; None is no value, and if all are, the first."""
        leader = 0
        for index, value in enumerate(values):
            first = values[leader]
            if value is not None and (first is None or self.better(value, first)):
                leader = index
        return leader


class OneStudent:
    """A stage's student: its state, and the checkpoint at which it was best."""

    count = 1

    def __init__(self, job: Job, mesh: Mesh) -> None:
        self.job, self.mesh, self.choice = job, mesh, Choice.of(job.config)
        self.step, self._optimizer, self.schedule = make_step(job, mesh)
        self.checkpoints = Checkpoints(
            job.directory / "checkpoints",
            keep=job.config.checkpoint.keep,
            best_mode=self.choice.mode,
            fingerprints=job.fingerprints,
        )
        self._best: tuple[float, int] | None = None

    def fresh(self) -> TrainState:
        """From the job's initial parameters."""
        return fresh_state(self.job, self._optimizer, self.mesh)

    def template(self) -> Any:
        """Of a plain state."""
        return self.step.abstract_state()

    def take_up(self, restored: Restored) -> TrainState:
        """The checkpoint's state."""
        best = restored.extra["best"]
        self._best = None if best is None else (best[0], best[1])
        return restored.state

    def evaluate(self, state: TrainState, teacher_params: tuple[Params, ...], step: int) -> Evaluation:
        """The best so far by the stage's metric asks for a checkpoint."""
        values = self.job.validate(self.step.get_state(state).params, teacher_params)
        line = "validation " + ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
        improved = False
        if self.choice.metric is not None:
            value = values[self.choice.metric]
            improved = self._best is None or self.choice.better(value, self._best[0])
            if improved:
                self._best = (value, step)
        return Evaluation(values, line, improved)

    def save(self, state: TrainState, step: int, *, positions: Any, tally: dict[str, Any]) -> None:
        """One that is the best so far is told apart."""
        is_best = self._best is not None and self._best[1] == step
        self.checkpoints.save(
            step,
            self.step.get_state(state),
            {"parts": positions},
            best_value=self._best[0] if self._best is not None and is_best else None,
            extra={"tally": tally, "best": self._best},
        )

    def chosen(self) -> int:
        """The step whose checkpoint is handed on."""
        # a metric that was never finite chooses nothing: then the last one it is
        chosen = (self.checkpoints.best() if self.choice.metric is not None else None) or self.checkpoints.latest()
        assert chosen is not None, "a stage ends with a save"
        return chosen


def _shown(value: float) -> str:
    """Counts as they are, everything else in four decimals."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
