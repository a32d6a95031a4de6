"""A stage that is a search: sweeps in rounds, each proposed from what came of those before, and the best handed on.

STAGE/search.json       what was tried, and what came of it: one entry a round, which is whole or not there
STAGE/rounds/N/         a round, as a sweep leaves it: its checkpoints stay while the best of all trials is in it
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from jaxdistill.atomic import atomic_write_bytes, atomic_write_json
from jaxdistill.config.chain import ChainStage
from jaxdistill.config.searches import Search, trial_variant
from jaxdistill.config.sweeps import Variant
from jaxdistill.errors import CheckpointError
from jaxdistill.host_memory import release_freed_memory
from jaxdistill.stages.loading import Survey
from jaxdistill.stages.proposals import Trial, propose
from jaxdistill.stages.sweep import SweepResult, common_of, student_rows, swept_students
from jaxdistill.train.job import Job
from jaxdistill.train.learner import Choice
from jaxdistill.train.stage_step import SweptStep
from jaxdistill.train.sweep import SweepOutcome, SweptStudent, hand_on, train_sweep
from jaxdistill.train.swept import CommonObjective

if TYPE_CHECKING:
    from jaxdistill.stages.prepare import Task


def run_search(task: Task, survey: Survey, console: Console) -> SweepResult:
    """Train a stage's search; the best student of all rounds becomes the stage's checkpoint.

    Called again after a kill, it reads finished rounds back and lets the interrupted one go on from its checkpoint.

    Args:
      task: of the chain.
      survey: of the stage.
      console: where progress is shown.

    Raises:
      CheckpointError: the rounds in the stage's directory are damaged, or of other data, teachers or students.
    """
    return _Rounds(task, survey, console).run()


def first_round(task: Task, survey: Survey) -> SweptStep:
    """The step of a search's first round; its objective is what all rounds have in common."""
    numbers, common = _search_of(survey.stage).rounds[0], _common(task, survey)

    def students() -> list[SweptStudent]:
        return swept_students(task, survey, _variants(survey.stage, numbers, _propose(survey.stage, 0, [])))

    job = dataclasses.replace(task.job(survey), objective=common.objective)
    return SweptStep(job, common, len(numbers), students)


class _Rounds:
    """What was tried in a stage so far, as it is in `search.json`.

    Of a round: its points, and once it has finished the value of each of its trials and their rows of the summary.
    """

    def __init__(self, task: Task, survey: Survey, console: Console) -> None:
        self.task, self.survey, self.stage, self.console = task, survey, survey.stage, console
        self.search = _search_of(survey.stage)
        self.job: Job = task.job(survey)
        self.choice = Choice.of(self.job.config)
        self.common = _common(task, survey)
        self.path = self.stage.directory / "search.json"
        self.rounds = _read(self.path, self.job.fingerprints)

    def run(self) -> SweepResult:
        """All rounds that have not finished, then the best of all trials once more, which has."""
        for index in range(len(self.search.rounds)):
            if index == len(self.rounds):
                self._write([*self.rounds, {"points": _propose(self.stage, index, self._trials())}])
            if "values" not in self.rounds[index]:
                self._finish(index)
                release_freed_memory()
            self._discard()
            self.console.print(self._line(index), highlight=False)
        number = self._leader()
        best, place = divmod(number, self.search.together)
        trained = self._train(best).students[place]
        hand_on(self.job, trained)
        curves = self._directory(best) / "metrics.jsonl"
        atomic_write_bytes(self.stage.directory / "metrics.jsonl", curves.read_bytes())
        self.console.print(f"{self.stage.key}: {self._label(number)} is handed on, of {self.search.trials} students")
        rows = [row for each in self.rounds for row in each["rows"]]
        return SweepResult(trained, rows[number], rows)

    def _finish(self, index: int) -> None:
        """Train a round and record what came of it."""
        outcome = self._train(index)
        rows = student_rows(self.task, self.survey, self._variants(index), outcome)
        finished = {**self.rounds[index], "values": list(outcome.values), "rows": rows}
        self._write([*self.rounds[:index], finished])

    def _discard(self) -> None:
        """Delete the checkpoints of the finished rounds that are without the best of all trials."""
        best = self._leader() // self.search.together
        for index, each in enumerate(self.rounds):
            if "values" in each and index != best:
                shutil.rmtree(self._directory(index) / "sweep", ignore_errors=True)

    def _train(self, index: int) -> SweepOutcome:
        """A round, from its newest checkpoint: one that has finished is read back, or trained anew to the same end."""
        students = swept_students(self.task, self.survey, self._variants(index))
        name = f"round {index + 1} of {len(self.search.rounds)}"
        job = dataclasses.replace(
            self.job,
            title=f"{self.stage.key}, {name}",
            directory=self._directory(index),
            run_name=f"{self.job.run_name}, {name}",
        )
        return train_sweep(job, students, self.common, self.console)

    def _directory(self, index: int) -> Path:
        return self.stage.directory / "rounds" / str(index + 1)

    def _variants(self, index: int) -> tuple[Variant, ...]:
        return _variants(self.stage, self.search.rounds[index], self.rounds[index]["points"])

    def _trials(self) -> list[Trial]:
        """Of all finished rounds, in their order."""
        finished = [each for each in self.rounds if "values" in each]
        return [trial for each in finished for trial in zip(each["points"], each["values"], strict=True)]

    def _leader(self) -> int:
        return self.choice.leader([value for _, value in self._trials()])

    def _line(self, index: int) -> str:
        """A finished round, and the best so far."""
        values, first = self.rounds[index]["values"], self.search.rounds[index].start
        own, best = first + self.choice.leader(values), self.choice.leader([value for _, value in self._trials()])
        return (
            f"{self.stage.key}: round {index + 1} of {len(self.search.rounds)}, {self._told(own)}; "
            f"best of all {self._told(best)}"
        )

    def _told(self, number: int) -> str:
        value = self._trials()[number][1]
        return f"{self.choice.metric} {'not finite' if value is None else format(value, '.4f')} ({self._label(number)})"

    def _label(self, number: int) -> str:
        index, place = divmod(number, self.search.together)
        return self._variants(index)[place].label

    def _write(self, rounds: list[dict[str, Any]]) -> None:
        self.rounds = rounds
        atomic_write_json(self.path, {"fingerprints": self.job.fingerprints, "rounds": rounds})


def _search_of(stage: ChainStage) -> Search:
    assert stage.search is not None
    return stage.search


def _common(task: Task, survey: Survey) -> CommonObjective:
    return common_of(swept_students(task, survey, _search_of(survey.stage).extremes))


def _variants(stage: ChainStage, numbers: range, points: list[dict[str, float]]) -> tuple[Variant, ...]:
    """The students of a round; trials are numbered from 1 where they are shown."""
    return tuple(
        trial_variant(stage.config, stage.terms, point, number=number + 1, seed=stage.seed)
        for number, point in zip(numbers, points, strict=True)
    )


def _propose(stage: ChainStage, index: int, told: list[Trial]) -> list[dict[str, float]]:
    search, choice = _search_of(stage), Choice.of(stage.config)
    seed = int(np.random.SeedSequence([stage.seed, index]).generate_state(1)[0])
    return propose(search.space, told, count=len(search.rounds[index]), maximize=choice.mode == "max", seed=seed)


def _read(path: Path, fingerprints: dict[str, str]) -> list[dict[str, Any]]:
    """The rounds of an earlier start, which must have been of the same training."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rounds, old = found["rounds"], found["fingerprints"]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); put it back from a copy, or delete this stage's directory to train it anew"
        ) from error
    changed = [name for name in sorted({*old, *fingerprints}) if old.get(name) != fingerprints.get(name)]
    if changed:
        raise CheckpointError(
            f"{path}: made with a different {', '.join(changed)}; give back what the stage was begun with, or choose "
            "another output_dir"
        )
    return rounds
