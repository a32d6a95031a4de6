"""Which rows make up which batch, how long it is, and the arrays it becomes.

A training batch is a pure function of (data set, seed, its index): any batch can be made without those before it, which
makes the position in the data a single number. Each epoch is one Grain permutation of all rows. Its rows are taken
`window` batches at a time, sorted by length, cut into batches, and these batches taken in a shuffled order; what does
not fill a batch is the epoch's last one, completed by filler rows. So a row's batch neighbours are about as long as it
is, and little is padded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdistill.data.labels import UNLABELLED
from jaxdistill.data.tokenize import TokenizedDataset

LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
MOST_LENGTHS = 8
_LEAST_SHARE = 0.01
"""Share of the data set's tokens that a length must save, however long the run, to be worth a compiled program."""
COMPILE_STEPS = 20
"""Steps that compiling a program is taken to cost where nobody knows better."""
_EVALUATIONS = 10
"""Times that an evaluation set is taken to be gone through."""
_FEW = 0.02
"""A length's share of an evaluation's tokens from which on the data set counts as small."""

_SMALL = 2**16
_ROUNDS = 4  # of Grain's index shuffle, as its own MapDataset.shuffle has


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches that hold each of `n` rows once: the last may hold filler rows."""
    return -(-n // batch_size)


def total_steps(n: int, batch_size: int, *, epochs: float | None = None, steps: int | None = None) -> int:
    """Batches of a training run given in epochs (a part of an epoch is rounded up to whole batches) or in steps."""
    if (epochs is None) == (steps is None):
        raise ValueError(f"give exactly one of epochs and steps, got epochs={epochs}, steps={steps}")
    if steps is not None:
        return steps
    return max(1, math.ceil(round(float(epochs or 0) * steps_per_epoch(n, batch_size), 6)))


def bucket_lengths(
    dataset: TokenizedDataset,
    max_length: int | None = None,
    *,
    steps: int | None = None,
    compile_steps: float = COMPILE_STEPS,
) -> tuple[int, ...]:
    """The static lengths that batches of a data set are padded to: at most 8, ascending; the last holds every row.

    Chosen among 8, 12, 16, 20, 24, 32, … 512 (and multiples of 256) such that the padded tokens plus the price of
    every length are fewest: each means a compilation, which has to pay for itself within the run.

    Args:
      dataset: its lengths are counted.
      max_length: bound of the last length (default: the data set's own), at least the longest row.
      steps: batches that will be padded to these lengths (None: very many).
      compile_steps: steps of average length that take as long as one compilation.
    """
    share = _LEAST_SHARE if steps is None else max(_LEAST_SHARE, compile_steps / steps)
    return _cheapest(dataset, max_length, LENGTHS, share=share)


def _cheapest(
    dataset: TokenizedDataset, max_length: int | None, candidates: Sequence[int], *, share: float
) -> tuple[int, ...]:
    """Lengths out of `candidates`, each at the price of a `share` of the data set's tokens."""
    limit = max_length if max_length is not None else dataset.max_length
    longest = int(dataset.lengths.max())
    candidates = [*candidates, *range(candidates[-1] + 256, longest + 256, 256)]
    top = next(length for length in candidates if length >= longest)
    if limit is not None:
        top = max(longest, min(top, limit))
    edges = [0, *(length for length in candidates if length < top), top]
    counts = np.histogram(dataset.lengths, bins=np.asarray(edges) + 0.5)[0]
    below = np.concatenate([[0], np.cumsum(counts)])
    price = share * int(dataset.lengths.sum())
    # best[k][j]: cheapest choice of k lengths whose largest is edges[j], as (cost, lengths).
    best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}]
    for _ in range(MOST_LENGTHS):
        best.append(
            {
                j: min(
                    (cost + float((below[j] - below[i]) * edges[j]) + price, (*chosen, edges[j]))
                    for i, (cost, chosen) in best[-1].items()
                    if i < j
                )
                for j in range(len(best), len(edges))
            }
        )
    return min(choices[len(edges) - 1] for choices in best if len(edges) - 1 in choices)[1]


def assemble(dataset: TokenizedDataset, rows: np.ndarray, *, batch_size: int, lengths: Sequence[int]) -> dict[str, Any]:
    """The batch of `rows`, padded to the first of `lengths` that holds them and completed by filler rows.

    Args:
      dataset: the examples.
      rows: int64 [n] row indices, 1 ≤ n ≤ batch_size.
      batch_size: B.
      lengths: ascending static lengths.

    Returns:
      input_ids, attention_mask, token_type_ids int32 [B, S]; labels int32 [B] (or as the data set's), example_id int32
      [B]; what the data set has for every token, int32 [B, S]; and, with several tokenizers, "tokenizers": the three
      arrays of each further one under "1", "2", …. A filler row has mask 0 everywhere, label −100 and example_id −1.
    """
    longest = int(dataset.lengths[rows].max())
    length = next(length for length in lengths if length >= longest)
    labels = np.full((batch_size, *dataset.labels.shape[1:]), UNLABELLED, np.int32)
    example_id = np.full(batch_size, -1, np.int32)
    labels[: len(rows)] = dataset.labels[rows]
    example_id[: len(rows)] = rows
    spans = [_places(encoding, rows, batch_size, length) for encoding in dataset.encodings]
    tokens = [_pad(encoding, *span) for encoding, span in zip(dataset.encodings, spans, strict=True)]
    batch: dict[str, Any] = {**tokens[0], "labels": labels, "example_id": example_id}
    places, real = spans[0]
    for name, column in dataset.per_token.items():
        batch[name] = np.where(real, column.values[places], np.int32(column.fill))
    if len(tokens) > 1:
        batch["tokenizers"] = {str(place): arrays for place, arrays in enumerate(tokens) if place}
    return batch


def _places(encoding: Any, rows: np.ndarray, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each token of a batch stands in the flat arrays (0 for padding), and which are no padding."""
    starts = np.zeros((batch_size, 1), np.int64)
    ends = np.zeros((batch_size, 1), np.int64)
    starts[: len(rows), 0] = encoding.offsets[rows]
    ends[: len(rows), 0] = encoding.offsets[rows + 1]
    places = starts + np.arange(length)
    real = places < ends
    places[~real] = 0
    return places, real


def _pad(encoding: Any, places: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    input_ids = encoding.ids[places]
    input_ids[~real] = encoding.pad_id
    if encoding.types is None:
        token_type_ids = np.zeros(real.shape, np.int32)
    else:
        token_type_ids = np.where(real, encoding.types[places], 0).astype(np.int32)
    return {"input_ids": input_ids, "attention_mask": real.astype(np.int32), "token_type_ids": token_type_ids}


class TrainPlan:
    """Training batches by index, as many as the run has steps; reading one changes nothing (safe from any thread).

    Args:
      dataset: N ≥ 1 examples.
      batch_size: B.
      seed: of the permutations; every epoch has its own.
      window: batches whose rows are sorted by length together (1: no sorting).
      lengths: ascending static lengths, the last one holding the longest row.
      steps: number of batches.
    """

    def __init__(
        self, dataset: TokenizedDataset, *, batch_size: int, seed: int, window: int, lengths: Sequence[int], steps: int
    ) -> None:
        self.dataset, self.batch_size, self.lengths, self.steps = dataset, batch_size, tuple(lengths), steps
        self._seed, self._window = seed, window
        self._full = len(dataset) // batch_size  # batches without filler rows
        # Read-ahead crosses from one window into the next, and hardly ever further back.
        self._window_rows = functools.lru_cache(maxsize=3)(self._arranged_window)
        self._small_permutation = functools.lru_cache(maxsize=2)(_small_permutation)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.rows(int(index))
        return assemble(self.dataset, rows, batch_size=self.batch_size, lengths=self.lengths)

    def rows(self, index: int) -> np.ndarray:
        """int64 [n ≤ B] rows of batch `index`."""
        epoch, place = divmod(index, steps_per_epoch(len(self.dataset), self.batch_size))
        if place == self._full:
            return self._permuted(epoch, self._full * self.batch_size, len(self.dataset))
        window, batch = divmod(place, self._window)
        return self._window_rows(epoch, window)[batch]

    def _permuted(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Positions start to stop of an epoch's permutation of all rows."""
        from grain.experimental import index_shuffle

        last, seed = len(self.dataset) - 1, _mixed(self._seed, epoch)
        if last < _SMALL:
            return self._small_permutation(last + 1, seed)[start:stop]
        return np.asarray([index_shuffle(i, last, seed, _ROUNDS) for i in range(start, stop)], np.int64)

    def _arranged_window(self, epoch: int, window: int) -> np.ndarray:
        """int64 [batches of the window, B]."""
        first = window * self._window
        batches = min(self._window, self._full - first)
        rows = self._permuted(epoch, first * self.batch_size, (first + batches) * self.batch_size)
        order = _small_permutation(batches, _mixed(self._seed, epoch, window))
        return self._arranged(rows.reshape(batches, self.batch_size))[order]

    def _arranged(self, rows: np.ndarray) -> np.ndarray:
        """A window's rows [batches, B] sorted by length."""
        if len(rows) == 1:
            return rows
        flat = rows.reshape(-1)
        return flat[np.argsort(self.dataset.lengths[flat], kind="stable")].reshape(rows.shape)


def _small_permutation(n: int, seed: int) -> np.ndarray:
    """Permutation of n ≤ 2¹⁶ numbers, from the order of Grain's shuffle of 2¹⁶.

    Grain's shuffle works on at least 2¹⁶ numbers and passes over those beyond n, one by one: 4 µs a number for n of
    that size, but 400 µs for n = 64.
    """
    from grain.experimental import index_shuffle

    return np.argsort([index_shuffle(i, _SMALL - 1, seed, _ROUNDS) for i in range(n)])


def _mixed(*numbers: int) -> int:
    """A 32-bit seed of several numbers (Grain's own seed + epoch would give seeds 0 and 1 each other's epochs)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EvalBatches(Sequence[dict[str, Any]]):
    """Batches that hold every example once, the longest first; filler rows complete the last. See `eval_batches`."""

    def __init__(self, dataset: TokenizedDataset, *, batch_size: int, lengths: Sequence[int]) -> None:
        self.dataset, self.batch_size, self.lengths = dataset, batch_size, tuple(lengths)
        self._order = np.argsort(-dataset.lengths, kind="stable")

    def __len__(self) -> int:
        return steps_per_epoch(len(self.dataset), self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        rows = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        return assemble(self.dataset, rows, batch_size=self.batch_size, lengths=self.lengths)


def eval_batches(dataset: TokenizedDataset, *, batch_size: int, lengths: Sequence[int] | None = None) -> EvalBatches:
    """All examples once, sorted by length and padded to a few static lengths; `example_id` gives their order back.

    Args:
      dataset: N ≥ 1 examples.
      batch_size: B.
      lengths: ascending static lengths. Default: as `bucket_lengths` for a few evaluations; of a small data set, powers
        of two alone, which other small data sets are padded to as well, so that one program serves them all.
    """
    if lengths is None:
        steps = _EVALUATIONS * steps_per_epoch(len(dataset), batch_size)
        share = max(_LEAST_SHARE, COMPILE_STEPS / steps)
        candidates = LENGTHS if share < _FEW else [length for length in LENGTHS if length.bit_count() == 1]
        lengths = _cheapest(dataset, None, candidates, share=share)
    return EvalBatches(dataset, batch_size=batch_size, lengths=lengths)
