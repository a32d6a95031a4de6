"""What a stage shows while it trains: a live bar on a terminal, one plain line a log interval anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_SHOWN = {"loss": "loss", "kd": "kd", "ce": "ce", "learning_rate": "lr"}
_MOST_NATS = 700.0  # beyond, the exponential is no number


class StageProgress:
    """Progress of one stage; a context manager.

    Args:
      title: the stage's name.
      total_steps: optimizer steps of the whole stage.
      start_step: where a resume begins.
      console: where to show it; a quiet one shows nothing.
      counts_tokens: a language model learns: tokens a second come first, and its cross-entropy, if the loss has it,
        is shown as perplexity.
    """

    def __init__(
        self, title: str, total_steps: int, start_step: int, console: Console, *, counts_tokens: bool = False
    ) -> None:
        self._title = title
        self._total = total_steps
        self._start = start_step
        self._console = console
        self._counts_tokens = counts_tokens
        self._began = time.monotonic()
        self._live = console.is_terminal and not console.quiet
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}", markup=False),
            console=console,
            disable=not self._live,
            auto_refresh=False,  # it changes only when `update` says so: no thread beside the training
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=start_step, line="compiling")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(
        self, step: int, values: Mapping[str, float], examples_per_second: float, tokens_per_second: float
    ) -> None:
        """Show the state at `step`: loss, its KD and CE parts and the learning rate from `values`, rates, time left."""
        shown = "  ".join(f"{short} {_number(values[name])}" for name, short in _SHOWN.items() if name in values)
        rates = self._rates(values, _number(examples_per_second), _number(tokens_per_second))
        left = f"{timedelta(seconds=round(self._seconds_left(step)))} left"
        if self._live:
            self._bar.update(self._task, completed=step, line=f"{shown}\n{rates}  {left}", refresh=True)
        else:
            self._print(f"{self._title}: step {step}/{self._total}  {shown}  {rates}  {left}")

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._print(text)

    def _rates(self, values: Mapping[str, float], examples: str, tokens: str) -> str:
        if not self._counts_tokens:
            return f"{examples} examples/s  {tokens} tokens/s"
        loss = values.get("cross_entropy", math.inf)
        perplexity = f"perplexity {_number(math.exp(loss))}  " if loss < _MOST_NATS else ""
        return f"{perplexity}{tokens} tokens/s  {examples} sequences/s"

    def _seconds_left(self, step: int) -> float:
        """At the mean pace of this process, compilation and evaluations included."""
        done = max(step - self._start, 1)
        return (time.monotonic() - self._began) / done * (self._total - step)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _number(value: float) -> str:
    """Four significant digits, and no decimals where they mean nothing: 0.4321, 1.000e-04, 12345."""
    if 1e-3 <= abs(value) < 100:
        return f"{value:.4f}"
    return f"{value:.0f}" if value == 0 or abs(value) >= 100 else f"{value:.1e}"
