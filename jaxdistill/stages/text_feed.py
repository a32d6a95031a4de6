"""What a language model trains on: rows of text in parts that processes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdistill.data import text
from jaxdistill.errors import CheckpointError
from jaxdistill.typing import Batch


@dataclass(frozen=True)
class TextFeed:
    """Packed sequences of one split; `share`: which part of every batch this process reads, of how many."""

    split: text.TextSplit
    share: tuple[int, int]

    def iterator(self, *, batch_size: int, seed: int, steps: int, positions: Sequence[Any] | None = None) -> Any:
        """Documents are dealt out to as many parts as processes began the stage, and stay in their parts."""
        index, count = self.share
        states = None if positions is None else [state for states in positions for state in states]
        parts = count if states is None else len(states)
        if parts % count:
            raise CheckpointError(
                f"{self.split.source}: the stage was begun by {parts} processes, and {count} cannot share their parts "
                f"of the text evenly; continue with a number that divides {parts}"
            )
        own = range(index * parts // count, (index + 1) * parts // count)
        batches = [
            self.split.train_iterator(
                batch_size=batch_size, seed=seed, steps=steps, process_index=part, process_count=parts
            )
            for part in own
        ]
        for part, iterator in zip(own, batches, strict=True):
            if states is not None:
                iterator.set_state(states[part])
        return _Parts(batches)

    def longest(self, batch_size: int) -> Batch:
        """All batches have one shape."""
        batches = self.iterator(batch_size=batch_size, seed=0, steps=1)
        batch = next(batches)
        batches.close()
        return batch

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Real rows, and tokens that are not padding."""
        tokens = batch["attention_mask"] if "attention_mask" in batch else batch["segment_ids"] > 0
        return int((batch["example_id"] >= 0).sum()), int(tokens.sum())


class _Parts:
    """Several parts of every batch, one below the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [next(part) for part in self._parts]
        return rows[0] if len(rows) == 1 else {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}

    def get_state(self) -> list[Any]:
        """Of every part."""
        return [part.get_state() for part in self._parts]

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        for part in self._parts:
            part.close()
