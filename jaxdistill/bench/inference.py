"""The compiled forward pass of several models, timed in turns at every batch size and length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxdistill import models
from jaxdistill.bench.facts import measured_on
from jaxdistill.bench.models import NamedModel
from jaxdistill.bench.processors import Stopwatch
from jaxdistill.bench.spread import ratio, spread
from jaxdistill.distill.teacher import OnlineTeacher
from jaxdistill.distill.teacher_cache import forward_logits
from jaxdistill.errors import UserError
from jaxdistill.inference.encoder import task_of
from jaxdistill.inference.generation import next_logits
from jaxdistill.stages.chain_table import shape_of
from jaxdistill.typing import Params

CALLS = 10
_WARM_UP = 2
_LENGTHS = (16, 64, 128)


@dataclass
class _Candidate:
    """A model in memory, and what its turns at one shape took. calls: seconds of each call; turns: (wall, CPU)."""

    named: NamedModel
    model: models.Model
    params: Params
    parameters: int
    calls: list[float] = field(default_factory=list)
    turns: list[tuple[float, float]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)


def bench_inference(
    named: Sequence[NamedModel],
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int] | None = None,
    calls: int = CALLS,
    repeats: int = 5,
    console: Console | None = None,
) -> dict[str, Any]:
    """Time models' forward passes on texts without padding: an encoder's logits, a decoder's for the next token.

    A call takes token ids from the host and ends when the result is there; compilation is left out.

    Args:
      named: the first is what the others are compared with.
      batch_sizes: texts of a call.
      lengths: tokens of a text; default, those of 16, 64 and 128 that all models have positions for.
      calls: of a turn.
      repeats: turns of each model at each shape; who comes first changes.
      console: where progress goes.

    Returns:
      What the JSON file holds: {"command", "created", …, "task", "shapes": [[batch, length], …], "models": [{"name",
      "parameters", "bytes", "cells": [one for each shape]}]}.

    Raises:
      UserError: models of different tasks, or a length that a model has no positions for.
    """
    console = console or Console()
    candidates = [_load(each) for each in named]
    task = candidates[0].model.task
    if odd := [each.named.name for each in candidates if each.model.task != task]:
        raise UserError(f"{', '.join(odd)}: not of the kind of {named[0].name} ({task}); time each kind by itself")
    shapes = [(batch, length) for batch in batch_sizes for length in _lengths(candidates, lengths)]
    for batch, length in shapes:
        console.print(f"batch {batch} × {length} tokens", highlight=False)
        _take_turns(candidates, batch, length, calls=calls, repeats=repeats)
        for each in candidates:
            each.cells.append(_cell(each, candidates[0], batch, length, calls))
    return {
        "command": "bench --inference",
        **measured_on(),
        "task": task,
        "repeats": repeats,
        "calls": calls,
        "shapes": [list(shape) for shape in shapes],
        "models": [_row(each) for each in candidates],
    }


def _load(named: NamedModel) -> _Candidate:
    model, params = models.from_pretrained(named.directory, task=task_of(named.directory))
    return _Candidate(named, model, OnlineTeacher(model).prepare(params), models.parameter_count(params))


def _lengths(candidates: Sequence[_Candidate], asked: Sequence[int] | None) -> list[int]:
    """What was asked for, or the usual ones; all models have positions for them."""
    shortest = min(candidates, key=lambda each: models.positions(each.model.config))
    most = models.positions(shortest.model.config)
    if asked is None:
        return [length for length in _LENGTHS if length <= most] or [most]
    if too_long := [length for length in asked if length > most]:
        raise UserError(f"--lengths: {max(too_long)} tokens, but {shortest.named.name} has {most} positions")
    return list(asked)


def _take_turns(candidates: Sequence[_Candidate], batch: int, length: int, *, calls: int, repeats: int) -> None:
    """Warm up, then rounds in which every model has one turn."""
    run = [_forward(each, batch, length) for each in candidates]
    for each, forward in zip(candidates, run, strict=True):
        each.calls, each.turns = [], []
        for _ in range(_WARM_UP):
            forward()
    for index in range(repeats):
        first = index % len(candidates)
        for place in (*range(first, len(candidates)), *range(first)):
            turn = Stopwatch()
            for _ in range(calls):
                call = Stopwatch()
                run[place]()
                candidates[place].calls.append(call.read()[0])
            candidates[place].turns.append(turn.read())


def _forward(each: _Candidate, batch: int, length: int) -> Callable[[], Any]:
    """The forward pass on random tokens, waiting for its result."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, each.model.config.vocab_size, (batch, length), dtype=np.int32)
    if each.model.task == "causal_lm":
        ends, places = np.full(batch, length, np.int32), np.arange(length, dtype=np.int32)[None]
        compiled = jax.jit(next_logits, static_argnums=0)
        return lambda: jax.block_until_ready(compiled(each.model, each.params, ids, ends, places))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return lambda: jax.block_until_ready(forward_logits(each.params, inputs, model=each.model))


def _cell(each: _Candidate, first: _Candidate, batch: int, length: int, calls: int) -> dict[str, Any]:
    """One model at one shape."""
    per_turn = batch * calls
    by_clock = [per_turn / wall for wall, _ in each.turns]
    by_cpu = [per_turn / cpu for _, cpu in each.turns]
    p50, p95 = (float(1e3 * seconds) for seconds in np.percentile(each.calls, (50, 95)))
    return {
        "batch": batch,
        "length": length,
        "p50_ms": p50,
        "p95_ms": p95,
        "examples_per_second": spread(by_clock),
        "examples_per_cpu_second": spread(by_cpu),
        "tokens_per_second": spread([length * value for value in by_clock]),
        "tokens_per_cpu_second": spread([length * value for value in by_cpu]),
        "faster_than_first": ratio(by_clock, [per_turn / wall for wall, _ in first.turns]),
        "faster_than_first_cpu": ratio(by_cpu, [per_turn / cpu for _, cpu in first.turns]),
    }


def _row(each: _Candidate) -> dict[str, Any]:
    return {
        "name": each.named.name,
        "directory": str(each.named.directory),
        "architecture": shape_of(each.model.config),
        "parameters": each.parameters,
        "bytes": sum(path.stat().st_size for path in each.named.directory.glob("*.safetensors")),
        "cells": each.cells,
    }
