"""Tokens of documents to rows of a fixed length, and rows to batches: Grain's packing with our row format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grain
import numpy as np

from jaxdistill.data.text.encode import NO_LABEL, Block
from jaxdistill.data.text.words import Separators

Packing = Literal["concat", "first_fit", "none"]

PACKING_BINS = 64
"""Rows that first-fit fills at a time: it hands them out when a document fits into none of them."""


class Cut(grain.experimental.FlatMapTransform):
    """A block's documents one by one, those longer than `length` in pieces of it (None: whole)."""

    def __init__(self, length: int | None) -> None:
        self._length = length

    def flat_map(self, element: Block) -> list[dict[str, np.ndarray]]:
        tokens, offsets = element["tokens"], element["offsets"]
        return [
            {"tokens": tokens[start : min(start + (self._length or end - begin), end)]}
            for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
            for start in range(begin, end, self._length or max(end - begin, 1))
        ]


def pack(
    blocks: grain.IterDataset, *, packing: Packing, length: int, seed: int | None, separators: Separators | None = None
) -> grain.IterDataset:
    """Blocks to rows of `length` tokens; tokens, segments and positions as Grain's packing gives them.

    Args:
      blocks: of documents, in the order in which they are packed.
      packing: `concat` joins the documents and cuts the stream; `first_fit` puts each into the first of
        `PACKING_BINS` rows that has room for it; `none` gives each a row.
      length: S. Documents that may not be split and are longer are cut first, into pieces that are segments.
      seed: of the order in which first-fit hands out its rows (the first ones are the fullest); None: as filled.
      separators: what is put around every piece, and counts as part of it; not for `concat`, which would cut them off.
    """
    room = length - (separators.size if separators is not None else 0)
    cut = grain.experimental.FlatMapIterDataset(blocks, Cut(None if packing == "concat" else room))
    if separators is not None:
        cut = cut.map(separators)
    match packing:
        case "concat":
            return grain.experimental.ConcatThenSplitIterDataset(cut, length_struct={"tokens": length})
        case "first_fit":
            return grain.experimental.FirstFitPackIterDataset(
                cut,
                length_struct={"tokens": length},
                num_packing_bins=PACKING_BINS,
                seed=seed or 0,
                shuffle_bins=seed is not None,
            )
        case "none":
            return cut.map(_Alone(length))


@dataclass(frozen=True)
class _Alone:
    """One piece in a row of its own, as packing would have it."""

    length: int

    def __call__(self, element: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        size = len(element["tokens"])
        tokens = np.zeros((self.length, 2), np.int32)
        tokens[:size] = element["tokens"]
        places = np.arange(self.length, dtype=np.int32)
        real = places < size
        return {
            "tokens": tokens,
            "tokens_segment_ids": real.astype(np.int32),
            "tokens_positions": np.where(real, places, 0),
        }


@dataclass(frozen=True)
class Batch:
    """Rows to a batch of `size`, completed by filler rows.

    Gives input_ids, segment_ids (1 … within the row, 0: padding), positions (from 0 in each segment), labels: int32
    [B, S], and filled: the number of rows that are not fillers. Padding has token `pad_id` and label −100.
    """

    size: int
    pad_id: int

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        segments = self._stacked(rows, "tokens_segment_ids")
        tokens = self._stacked(rows, "tokens")
        real = segments > 0
        return {
            "input_ids": np.where(real, tokens[..., 0], np.int32(self.pad_id)),
            "segment_ids": segments,
            "positions": self._stacked(rows, "tokens_positions"),
            "labels": np.where(real, tokens[..., 1], np.int32(NO_LABEL)),
            "filled": len(rows),
        }

    def _stacked(self, rows: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
        first = rows[0][name]
        stacked = np.zeros((self.size, *first.shape), np.int32)
        for place, row in enumerate(rows):
            stacked[place] = row[name]
        return stacked


@dataclass(frozen=True)
class Number:
    """Gives each row of batch `index` its number in the run: process `process` of `count` makes every batch's part."""

    process: int
    count: int

    def __call__(self, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        filled = batch.pop("filled")
        size = len(batch["input_ids"])
        places = np.arange(size)
        numbers = ((index * self.count + self.process) * size + places) % 2**31
        return {**batch, "example_id": np.where(places < filled, numbers, -1).astype(np.int32)}


def filler_batch(size: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    """A batch without a row: arrays as `Batch` and `Number` give them."""
    zeros = np.zeros((size, length), np.int32)
    return {
        "input_ids": zeros + np.int32(pad_id),
        "segment_ids": zeros,
        "positions": zeros,
        "labels": zeros + np.int32(NO_LABEL),
        "example_id": np.full(size, -1, np.int32),
    }


def count_rows(
    lengths: np.ndarray, *, packing: Packing, length: int, block: int, separators: Separators | None = None
) -> int:
    """Rows that documents of these lengths make when packed in this order.

    Args:
      lengths: int [N] tokens.
      packing, length, separators: as for `pack`.
      block: documents a block.
    """
    if packing == "concat":
        return -(-int(lengths.sum()) // length)
    if packing == "none":
        room = length - (separators.size if separators is not None else 0)
        return int((-(-lengths.astype(np.int64) // room)).sum())
    # The packing itself, over tokens that are all the same: no second version of the algorithm that could differ.
    tokens = np.zeros((int(max((lengths[i : i + block].sum() for i in range(0, len(lengths), block)))), 2), np.int8)
    blocks = grain.MapDataset.range(0, len(lengths), block).map(_Blank(lengths, block, tokens))
    blank = blocks.to_iter_dataset(grain.ReadOptions(0, 0))
    rows = pack(blank, packing=packing, length=length, seed=None, separators=separators)
    return sum(1 for _ in rows)


@dataclass(frozen=True)
class _Blank:
    lengths: np.ndarray
    block: int
    tokens: np.ndarray

    def __call__(self, start: int) -> Block:
        sizes = self.lengths[start : start + self.block]
        return {"tokens": self.tokens, "offsets": np.concatenate([[0], np.cumsum(sizes)])}
