"""The training batches as a resumable Grain iterator that reads ahead."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

from jaxdistill.data.batching import TrainPlan, bucket_lengths, total_steps
from jaxdistill.data.example_packing import PackedPlan, PackedShape, packed_shapes
from jaxdistill.data.tokenize import TokenizedDataset

_READ_AHEAD = 16


def train_iterator(
    dataset: TokenizedDataset,
    *,
    batch_size: int,
    seed: int,
    batching: Literal["padded", "bucketed", "packed"] = "bucketed",
    shuffle_window: int = 64,
    epochs: float | None = None,
    steps: int | None = None,
    lengths: Sequence[int] | Sequence[PackedShape] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Any:
    """Batches of a whole training run, in order (see `batching` for what is in them).

    Args:
      dataset: N ≥ 1 examples.
      batch_size: B.
      seed: of the order; the same seed gives the same batches, in any process.
      batching: `bucketed`: rows of similar length together; `padded`: in shuffled order; both padded to `lengths`.
        `packed`: in shuffled order, several examples to a row (see `example_packing`).
      shuffle_window: batches whose rows are sorted by length together when bucketed, and that those of one shape are
        brought together among when packed.
      epochs: passes over the data, or …
      steps: … batches: exactly one of the two.
      lengths: ascending static lengths (default: the data set's `bucket_lengths` for so many batches); when packed,
        shapes (default: its `packed_shapes`).
      share: (index, count): of every batch only its part `index` of `count` equal ones, for one of several processes.

    Returns:
      A Grain `DatasetIterator`. `get_state()` is a small dictionary; `set_state()` of it, on any iterator made with
      the same arguments, continues with exactly the batches that would have followed. A thread reads ahead.
    """
    import grain

    steps = total_steps(len(dataset), batch_size, epochs=epochs, steps=steps)
    plan = _plan(dataset, batching, lengths, batch_size=batch_size, seed=seed, window=shuffle_window, steps=steps)
    # One thread: a batch takes far less than a step, and the processor belongs to the step.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
    batches = grain.MapDataset.source(plan)
    index, count = share
    if count > 1:
        batches = batches.map(functools.partial(_part, index=index, count=count))
    return iter(batches.to_iter_dataset(options))


def _plan(
    dataset: TokenizedDataset, batching: str, lengths: Any, *, batch_size: int, window: int, steps: int, seed: int
) -> TrainPlan:
    if batching == "packed":
        shapes = lengths or packed_shapes(dataset, batch_size, steps=steps)
        return PackedPlan(dataset, batch_size=batch_size, seed=seed, window=window, shapes=shapes, steps=steps)
    window = window if batching == "bucketed" else 1
    lengths = lengths or bucket_lengths(dataset, steps=steps)
    return TrainPlan(dataset, batch_size=batch_size, seed=seed, window=window, lengths=lengths, steps=steps)


def _part(batch: Any, *, index: int, count: int) -> Any:
    """One of `count` equal parts of a batch's rows."""
    if isinstance(batch, dict):
        return {name: _part(value, index=index, count=count) for name, value in batch.items()}
    rows = len(batch) // count
    return batch[index * rows : (index + 1) * rows]
