"""One stage: iterate, log, evaluate, checkpoint; resume where the last whole checkpoint stands."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxdistill.data.stacking import stack
from jaxdistill.errors import DivergedError, Interrupted
from jaxdistill.host_memory import release_freed_memory
from jaxdistill.parallel import host_memory, make_mesh
from jaxdistill.parallel.distributed import is_lead_host
from jaxdistill.parallel.hosts import exchange
from jaxdistill.train.checkpoint import load_params
from jaxdistill.train.dispatch import Groups
from jaxdistill.train.job import Job, step_memory, steps_per_dispatch
from jaxdistill.train.learner import Learner, OneStudent
from jaxdistill.train.metrics import MetricsWriter, fetch
from jaxdistill.train.out_of_memory import device_memory_limit, is_out_of_memory, out_of_memory_error
from jaxdistill.train.progress import StageProgress
from jaxdistill.tree import tree_digest
from jaxdistill.typing import Params


@dataclass(frozen=True)
class Trained:
    """What a stage leaves: the chosen checkpoint's step, parameters and their digest, and what was measured."""

    step: int
    params: Params
    identity: str
    measured: dict[str, Any]


@dataclass
class _Tally:
    """What is counted over the whole stage, across resumes."""

    seconds: float = 0.0
    compile_seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def rates(self) -> tuple[float, float]:
        """Examples and real tokens a second, compilation left out."""
        busy = max(self.seconds - self.compile_seconds, 1e-9)
        return self.examples / busy, self.tokens / busy


def train_stage(job: Job, console: Console) -> Trained:
    """Train one stage to its end, from its newest whole checkpoint if there is one.

    Raises:
        DivergedError: too many non-finite updates in a row.
        Interrupted: SIGTERM arrived; the state is checkpointed.
        MemoryLimitError: the step does not fit a device; it says what would.
    """
    student = OneStudent(job, make_mesh(job.parallel))
    measured = train(job, student, console)
    chosen = student.chosen()
    with host_memory():  # one device may be too small for what several have trained
        params = load_params(student.checkpoints.directory / str(chosen))
    return Trained(chosen, params, tree_digest(params), {**measured, "best_step": chosen})


def train(job: Job, learner: Learner, console: Console) -> dict[str, Any]:
    """Train whoever learns to the end of a stage; every checkpoint is on disk then.

    Returns:
        What was measured on the way.

    Raises:
        As `train_stage`.
    """
    try:
        return _train(job, learner, console)
    except (RuntimeError, ValueError) as error:  # what JAX raises, compiling or running
        if not is_out_of_memory(error):
            raise
        memory = step_memory(job, students=learner.count)
        raise out_of_memory_error(error, memory, limit=device_memory_limit()) from error


def _train(job: Job, learner: Learner, console: Console) -> dict[str, Any]:
    loop = _Loop(job, learner, console)
    try:
        with _terminations() as asked_to_stop:
            loop.run(asked_to_stop)
        learner.checkpoints.wait()
        return loop.measured()
    finally:
        loop.close()


class _Loop:
    """The state of one stage's training on the host side."""

    def __init__(self, job: Job, learner: Learner, console: Console) -> None:
        train, checkpoint = job.config.train, job.config.checkpoint
        self.job = job
        self.total = job.total_steps
        self.evaluate_every = job.config.evaluate.every or job.steps_per_epoch or self.total
        self.save_every = checkpoint.every or self.evaluate_every
        self.tally = _Tally()
        self.learner, self.step, self.schedule = learner, learner.step, learner.schedule
        self.checkpoints = learner.checkpoints
        self.done, positions = 0, None
        if self.checkpoints.exists():
            restored = self.checkpoints.restore(learner.template())
            state = learner.take_up(restored)
            positions = restored.data_state["parts"]
            self.tally = _Tally(**restored.extra["tally"])
            self.done = restored.step
            for warning in restored.warnings:
                console.print(f"[yellow]{warning}[/yellow]")
            console.print(f"{job.title}: continues at step {self.done} of {self.total}")
        else:
            state = learner.fresh()
        self.per_dispatch = steps_per_dispatch(job)
        feed = job.feed.iterator(batch_size=train.batch_size, seed=job.seed, steps=self.total, positions=positions)
        self.batches = Groups(feed, most=self.per_dispatch)
        self.state = self.step.put_state(state)
        self.teacher_params = self.step.put_params(job.teacher_params)
        self.writer = None
        if is_lead_host():
            self.writer = MetricsWriter(
                job.directory,
                tensorboard=job.logging.tensorboard,
                wandb=job.logging.wandb,
                run_name=job.run_name,
                resume_step=self.done,
            )
        self.progress = StageProgress(
            job.title, self.total, self.done, console, counts_tokens=job.student.task.endswith("_lm")
        )

    def run(self, asked_to_stop: Callable[[], bool]) -> None:
        """All remaining steps. Between two log lines nothing waits for the device."""
        pending: list[dict[str, Any]] = []
        log_every = self.job.config.train.log_every
        with self.progress:
            mark = time.perf_counter()
            while self.done < self.total:
                pending.append(self._advance(self._until_next(log_every)))
                last = self.done == self.total
                log = last or self.done % log_every == 0
                evaluate = last or self.done % self.evaluate_every == 0
                save = last or self.done % self.save_every == 0
                stop = self._stop(asked_to_stop)
                if not (log or evaluate or save or stop):
                    continue
                means, skipped = fetch(pending)
                now = time.perf_counter()
                self.tally.seconds += now - mark
                mark = now
                self._log(means, skipped)
                pending = []
                if evaluate and self._evaluate():
                    save = True
                if save or stop:
                    self._save()
                if stop and not last:
                    self.checkpoints.wait()
                    raise Interrupted(
                        f"{self.job.title}: stopped by SIGTERM at step {self.done} and checkpointed; the same command "
                        "continues there"
                    )
                mark = time.perf_counter()

    def _stop(self, asked_to_stop: Callable[[], bool]) -> bool:
        """Whether to stop here: several processes agree on it, when one of them logs."""
        if jax.process_count() == 1:
            return asked_to_stop()
        return self.done % self.job.config.train.log_every == 0 and any(exchange(asked_to_stop()))

    def _until_next(self, log_every: int) -> int:
        """Steps up to the next log line, evaluation, checkpoint or end."""
        left = (every - self.done % every for every in (log_every, self.evaluate_every, self.save_every))
        return min(*left, self.total - self.done)

    def _advance(self, limit: int) -> dict[str, Any]:
        """One dispatch of at most `limit` steps; its metrics stay on the device.

        Nothing waits here: while the device works, the next batches are read and on their way to it.
        """
        batches = self.batches.take(limit)
        parts = self.job.feed.share[1]  # the other processes' parts are taken to be like this one's
        for batch in batches:
            examples, tokens = self.job.feed.sizes(batch)
            self.tally.examples += parts * examples
            self.tally.tokens += parts * tokens
        traces, begin = self.step.trace_count, time.perf_counter()
        if self.per_dispatch == 1:
            self.state, metrics = self.step(self.state, self.teacher_params, batches[0])
        else:
            stacked = stack(batches, self.per_dispatch)
            self.state, metrics = self.step.many(self.state, self.teacher_params, stacked, len(batches))
        if self.step.trace_count != traces:
            self.tally.compile_seconds += time.perf_counter() - begin
            release_freed_memory()  # compiling takes hundreds of megabytes, and the allocator would keep them
        self.done += len(batches)
        return metrics

    def _log(self, means: dict[str, float], skipped: np.ndarray) -> None:
        examples_per_second, tokens_per_second = self.tally.rates()
        values = {
            **means,
            "learning_rate": float(np.asarray(self.schedule(self.done - self.tally.skipped))),
            "examples_per_second": examples_per_second,
            "tokens_per_second": tokens_per_second,
        }
        self._record("train", values)
        self.progress.update(self.done, values, examples_per_second, tokens_per_second)
        self._count_skipped(skipped, first=self.done - len(skipped) + 1)

    def _record(self, kind: str, values: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(self.done, kind, values)

    def _count_skipped(self, skipped: np.ndarray, *, first: int) -> None:
        """Report skipped updates by their steps; raise once too many came in a row."""
        at = [first + int(index) for index in np.flatnonzero(skipped)]
        if at:
            self.progress.note(f"{self.job.title}: non-finite loss or gradient, update skipped at step {_steps(at)}")
        limit = self.job.config.train.max_skipped
        for index, flag in enumerate(skipped):
            self.tally.skipped += int(flag)
            self.tally.skipped_in_a_row = self.tally.skipped_in_a_row + 1 if flag else 0
            if self.tally.skipped_in_a_row >= limit:
                raise DivergedError(
                    f"{self.job.title}: {limit} updates in a row had a non-finite loss or gradient, the last at step "
                    f"{first + index} (train.max_skipped={limit}); lower train.learning_rate or train.max_grad_norm. "
                    "The last good checkpoint is intact"
                )

    def _evaluate(self) -> bool:
        """Evaluate on validation; true if a checkpoint is due for it."""
        found = self.learner.evaluate(self.state, self.step.get_params(self.teacher_params), self.done)
        self._record("validation", found.values)
        self.progress.note(f"{self.job.title}: step {self.done}, {found.line}")
        return found.improved

    def _save(self) -> None:
        self.learner.save(self.state, self.done, positions=self._positions(), tally=vars(self.tally))

    def _positions(self) -> list[Any]:
        """Where every part of the batches stands, whichever process reads it."""
        parts = dict(exchange([self.job.feed.share[0], self.batches.get_state()]))
        return [parts[index] for index in sorted(parts)]

    def measured(self) -> dict[str, Any]:
        """The stage's figures."""
        examples_per_second, tokens_per_second = self.tally.rates()
        return {
            "steps": self.total,
            "examples": self.tally.examples,
            "tokens": self.tally.tokens,
            "seconds": round(self.tally.seconds, 3),
            "examples_per_second": round(examples_per_second, 1),
            "tokens_per_second": round(tokens_per_second, 1),
            "compile_seconds": round(self.tally.compile_seconds, 3),
            "skipped_steps": self.tally.skipped,
        }

    def close(self) -> None:
        """Flush what is open; a background save in flight is waited for."""
        self.batches.close()
        self.checkpoints.close()
        if self.writer is not None:
            self.writer.close()


@contextmanager
def _terminations() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM instead of dying of it; a second one kills."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _steps(steps: list[int]) -> str:
    shown = ", ".join(str(step) for step in steps[:8])
    return shown if len(steps) <= 8 else f"{shown}, … ({len(steps)} in all)"
