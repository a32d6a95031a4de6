"""Whole examples packed several to a row: which rows hold a batch, of which few static shapes, and the arrays.

A packed batch has as many examples as a padded one; only the rows that hold them are fewer and longer. Rows are filled
evenly, the longest examples first, so that each holds about as many tokens, and about as many examples, as the others.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdistill.data.batching import COMPILE_STEPS, LENGTHS, MOST_LENGTHS, TrainPlan, bucket_lengths
from jaxdistill.data.labels import UNLABELLED
from jaxdistill.data.tokenize import TokenizedDataset

_SAMPLE = 256
"""Batches whose packing decides which shapes are worth a program."""
_ATTENTION = 512
"""Length of a row at which attention within it costs as much as everything else; between those of small and large."""


@dataclass(frozen=True, order=True)
class PackedShape:
    """R rows of `length` tokens, each with room for `slots` examples."""

    rows: int
    length: int
    slots: int

    @property
    def cost(self) -> float:
        """What a step on it costs, in tokens of short rows."""
        return self.rows * self.length * (1 + self.length / _ATTENTION)


def packed_shapes(
    dataset: TokenizedDataset,
    batch_size: int,
    *,
    multiple: int = 1,
    steps: int | None = None,
    compile_steps: float = COMPILE_STEPS,
) -> tuple[PackedShape, ...]:
    """The static shapes that batches of a data set are packed into: at most 8, ascending in cost; the last holds any.

    Chosen such that the cost of a sample of batches, plus the price of each shape's compilation, is small.

    Args:
      dataset: N ≥ 1 examples.
      batch_size: B.
      multiple: of what the number of rows is one: data-parallel devices × micro-batches.
      steps: batches of the run (None: very many).
      compile_steps: steps of average cost that take as long as one compilation.
    """
    rng = np.random.default_rng(0)
    sample = [rng.choice(dataset.lengths, min(batch_size, len(dataset)), replace=False) for _ in range(_SAMPLE)]
    top = bucket_lengths(dataset, steps=1)[-1]  # one length for all
    every = PackedShape(-(-batch_size // multiple) * multiple, top, 1)
    found: Counter[PackedShape] = Counter()
    for length in (*(length for length in LENGTHS if 32 <= length < top), top):
        for lengths in sample:
            if lengths.max() <= length and (shape := _least(lengths, length, batch_size, multiple)):
                found[shape] += 1
    most = max((shape.rows for shape in found if shape.length == top), default=batch_size) + multiple
    spare = PackedShape(most, top, _slots(batch_size, most))
    candidates = sorted((shape for shape in found if shape.cost < every.cost), key=lambda shape: shape.cost)
    fits = {shape: np.array([bins(lengths, shape) is not None for lengths in sample]) for shape in candidates}
    always = (spare, every) if spare.cost < every.cost else (every,)
    return _cheapest(candidates, fits, always, share=compile_steps / steps if steps else 0.0)


def _least(lengths: np.ndarray, length: int, batch_size: int, multiple: int) -> PackedShape | None:
    """The fewest rows of a length that hold a batch."""
    rows = -(-int(lengths.sum()) // (length * multiple)) * multiple
    while rows < batch_size:
        shape = PackedShape(rows, length, _slots(batch_size, rows))
        if bins(lengths, shape) is not None:
            return shape
        rows += multiple
    return None


def _slots(batch_size: int, rows: int) -> int:
    """Half as many again as even rows need: they are not quite even."""
    return min(batch_size, -(-3 * batch_size // (2 * rows)))


def _cheapest(
    candidates: Sequence[PackedShape],
    fits: dict[PackedShape, np.ndarray],
    always: tuple[PackedShape, ...],
    *,
    share: float,
) -> tuple[PackedShape, ...]:
    """Shapes added to `always` one by one, for as long as the best of them saves more than its price.

    Of those two the first holds every batch like the sample's, with rows to spare; the second, whose rows are mostly
    empty, holds any batch there could be. Neither is compiled unless it is needed.
    """
    chosen = list(always)
    cost = np.full(_SAMPLE, always[0].cost)
    while candidates and len(chosen) < MOST_LENGTHS:
        costs = {shape: np.where(fits[shape], np.minimum(cost, shape.cost), cost) for shape in candidates}
        best = min(candidates, key=lambda shape: costs[shape].sum())
        if cost.sum() - costs[best].sum() <= max(share, 0.01) * costs[best].sum():
            break
        chosen.append(best)
        cost = costs[best]
    return tuple(sorted(chosen, key=lambda shape: shape.cost))


def bins(lengths: np.ndarray, shape: PackedShape) -> list[list[int]] | None:
    """Places of the examples in each row, the next longest always into the emptiest row; None if they do not fit."""
    if lengths.sum() > shape.rows * shape.length or len(lengths) > shape.rows * shape.slots:
        return None
    rows: list[list[int]] = [[] for _ in range(shape.rows)]
    emptiest = [(0, row) for row in range(shape.rows)]
    for place in np.argsort(-lengths, kind="stable"):
        if not emptiest:
            return None
        filled, row = heapq.heappop(emptiest)
        filled += int(lengths[place])
        if filled > shape.length:
            return None
        rows[row].append(int(place))
        if len(rows[row]) < shape.slots:
            heapq.heappush(emptiest, (filled, row))
    return rows


class PackedPlan(TrainPlan):
    """Training batches by index, packed; each epoch's order is shuffled, whatever the lengths.

    Args:
      dataset, batch_size, seed, steps: as of `TrainPlan`.
      window: batches within which those of one shape are put next to each other, a few at a time.
      shapes: as of `packed_shapes`.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        batch_size: int,
        seed: int,
        window: int,
        shapes: Sequence[PackedShape],
        steps: int,
    ) -> None:
        lengths = sorted({shape.length for shape in shapes})
        super().__init__(dataset, batch_size=batch_size, seed=seed, window=window, lengths=lengths, steps=steps)
        self.shapes = tuple(shapes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.rows(int(index))
        place, packed = self._fit(rows)
        return assemble_packed(self.dataset, rows, packed, self.shapes[place])

    def _arranged(self, rows: np.ndarray) -> np.ndarray:
        """Batches as they were drawn."""
        return rows

    def _fit(self, rows: np.ndarray) -> tuple[int, list[list[int]]]:
        """The first shape that holds a batch, and how."""
        lengths = self.dataset.lengths[rows]
        for place, shape in enumerate(self.shapes):
            if lengths.max() <= shape.length and (packed := bins(lengths, shape)) is not None:
                return place, packed
        raise AssertionError("the last shape has a row for every example")


def widest_packed(dataset: TokenizedDataset, batch_size: int, shapes: Sequence[PackedShape]) -> dict[str, Any]:
    """A batch of the longest examples in the shape that needs most memory."""
    rows = np.argsort(-dataset.lengths, kind="stable")[:batch_size]
    shape = max(shapes, key=lambda shape: shape.cost)
    packed = bins(dataset.lengths[rows], shape)
    assert packed is not None, "the last shape has a row for every example"
    return assemble_packed(dataset, rows, packed, shape)


def assemble_packed(
    dataset: TokenizedDataset, rows: np.ndarray, packed: Sequence[Sequence[int]], shape: PackedShape
) -> dict[str, Any]:
    """The batch of `rows`, packed as `bins` says.

    Returns:
      int32 [R, S] each: input_ids, attention_mask, token_type_ids, segment_ids (an example's number in its row, from 1
      on; 0 = padding) and positions (from 0 in each example); int32 [R, G] each: segment_starts (where in the row the
      example begins), labels and example_id (−100 and −1 where a row has no example). With several tokenizers,
      "tokenizers" has the tokens, segments, positions and starts of each further one; examples are in the same rows.
    """
    labels = np.full((shape.rows, shape.slots), UNLABELLED, np.int32)
    example_id = np.full((shape.rows, shape.slots), -1, np.int32)
    for row, places in enumerate(packed):
        examples = rows[np.asarray(places, np.int64)]
        labels[row, : len(places)], example_id[row, : len(places)] = dataset.labels[examples], examples
    tokens = [_fill(encoding, example_id, shape) for encoding in dataset.encodings]
    batch: dict[str, Any] = {**tokens[0], "labels": labels, "example_id": example_id}
    if len(tokens) > 1:
        batch["tokenizers"] = {str(place): arrays for place, arrays in enumerate(tokens) if place}
    return batch


def _fill(encoding: Any, example_id: np.ndarray, shape: PackedShape) -> dict[str, np.ndarray]:
    """One tokenizer's arrays of the examples [R, G] (−1: none) in their rows."""
    real = example_id >= 0
    first = np.where(real, encoding.offsets[example_id], 0)
    sizes = np.where(real, encoding.offsets[example_id + 1] - first, 0)
    starts = np.cumsum(sizes, axis=1) - sizes
    place = np.arange(shape.length)[None, :, None]
    # [R, S, G] for a handful of rows: which example a place belongs to
    inside = (place >= starts[:, None]) & (place < (starts + sizes)[:, None])
    present, slot = inside.any(axis=2), inside.argmax(axis=2)
    positions = np.where(present, place[..., 0] - np.take_along_axis(starts, slot, axis=1), 0)
    source = np.where(present, np.take_along_axis(first, slot, axis=1) + positions, 0)
    types = np.zeros_like(source) if encoding.types is None else np.where(present, encoding.types[source], 0)
    arrays = {
        "input_ids": np.where(present, encoding.ids[source], encoding.pad_id),
        "attention_mask": present,
        "token_type_ids": types,
        "segment_ids": np.where(present, slot + 1, 0),
        "positions": positions,
        "segment_starts": np.where(real, starts, 0),
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}
