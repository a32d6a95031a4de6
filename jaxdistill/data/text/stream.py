"""Documents in the order of their source, without random access: blocks of them, shuffled within a window."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import grain
import numpy as np

from jaxdistill.data.rows import bad_rows_error
from jaxdistill.data.sources import BAD_ROWS_ADVICE
from jaxdistill.data.text.records import Parts, TextSource, check_row
from jaxdistill.data.text.store import held_out_share
from jaxdistill.data.text.stream_rows import StreamRows, open_rows
from jaxdistill.errors import DataError, ExternalError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stream:
    """Which documents of a source are read in turn; picklable.

    side: `held out` or `kept` where a `share` is held out by hash, or `all`. index, count: of the processes that
    divide the rows.
    """

    source: TextSource
    side: Literal["held out", "kept", "all"]
    share: float
    index: int = 0
    count: int = 1

    def takes(self, parts: Parts) -> bool:
        """Whether a document is on this side of the split."""
        return self.side == "all" or (held_out_share(parts) < self.share) == (self.side == "held out")

    def check(self) -> None:
        """Raises DataError when this process would find no document (or a bad row before it)."""
        reader = _Reader(self, repeat=False)
        if next(reader, None) is None:
            whose = f" for process {self.index} of {self.count}" if self.count > 1 else ""
            what = "" if self.side == "all" else f" that is {self.side} (data.validation_share={self.share:g})"
            raise DataError(f"{self.source.name}: no document{what}{whose}; give more data")


class StreamBlocks(grain.IterDataset):
    """Blocks of `block` documents of a stream, each window of them shuffled; Grain's processes divide the blocks.

    Args:
      stream: the documents.
      block: documents that are handed on together.
      window: documents that are shuffled together.
      seed: of the order; None: in that of the source.
      repeat: begin again at the end.
    """

    def __init__(self, stream: Stream, *, block: int, window: int, seed: int | None, repeat: bool) -> None:
        super().__init__()
        self.stream, self.block, self.window, self.order_seed, self.repeat = stream, block, window, seed, repeat
        self.start, self.step = 0, 1

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """What Grain calls in each process: only every so manieth block is to be given."""
        del sequential_slice
        self.start, self.step = sl.start, sl.step

    def __iter__(self) -> grain.DatasetIterator:
        return _BlockIterator(self)


class _BlockIterator(grain.DatasetIterator):
    """State: where the window begins, its number, and the blocks of it that were given."""

    def __init__(self, blocks: StreamBlocks) -> None:
        super().__init__()
        self._blocks = blocks
        self._reader = _Reader(blocks.stream, repeat=blocks.repeat)
        self._begin(self._reader.position(), number=-1, before=0)

    def _begin(self, position: dict[str, Any], *, number: int, before: int) -> None:
        self._position, self._number, self._before = position, number, before
        self._window: list[Parts] = []
        self._given = 0

    def __next__(self) -> list[Parts]:
        size = self._blocks.block
        while True:
            while self._given * size < len(self._window):
                block = self._window[self._given * size : (self._given + 1) * size]
                self._given += 1
                if (self._before + self._given - 1) % self._blocks.step == self._blocks.start:
                    return block
            before = self._before + self._given
            self._begin(self._reader.position(), number=self._number + 1, before=before)
            self._fill()
            if not self._window:
                raise StopIteration

    def _fill(self) -> None:
        window = list(islice(self._reader, self._blocks.window))
        if self._blocks.order_seed is not None:
            order = np.random.default_rng((self._blocks.order_seed, self._number)).permutation(len(window))
            window = [window[place] for place in order]
        self._window = window

    def get_state(self) -> dict[str, Any]:
        return {
            "position": copy.deepcopy(self._position),
            "window": self._number,
            "before": self._before,
            "given": self._given,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._reader.go_to(copy.deepcopy(state["position"]))
        self._begin(copy.deepcopy(state["position"]), number=state["window"], before=state["before"])
        if state["given"]:
            self._fill()
            self._given = state["given"]


class _Reader:
    """The documents of a stream one by one. Its position is small JSON."""

    def __init__(self, stream: Stream, *, repeat: bool) -> None:
        self._stream, self._repeat = stream, repeat
        self.go_to({"epoch": 0, "rows": 0, "skipped": 0, "at": None})

    def go_to(self, position: dict[str, Any]) -> None:
        self._epoch, self._rows, self._skipped = position["epoch"], position["rows"], position["skipped"]
        self._source: StreamRows | None = None
        self._at = position["at"]
        self._found = self._rows > 0  # whether this epoch has had a document; a resumed one is taken to

    def position(self) -> dict[str, Any]:
        """Epoch, rows read of it, bad rows skipped in all, and where the source stands."""
        at = self._at if self._source is None else self._source.position()
        return {"epoch": self._epoch, "rows": self._rows, "skipped": self._skipped, "at": at}

    def __iter__(self) -> Iterator[Parts]:
        return self

    def __next__(self) -> Parts:
        try:
            while (parts := self._next_of_epoch()) is None:
                if not self._repeat or not self._found:
                    raise StopIteration
                self.go_to({"epoch": self._epoch + 1, "rows": 0, "skipped": self._skipped, "at": None})
                self._found = False
            return parts
        except OSError as error:
            name = self._stream.source.name
            raise ExternalError(f"{name}: cannot be read: {error.strerror or error}") from error

    def _next_of_epoch(self) -> Parts | None:
        stream = self._stream
        if self._source is None:
            self._source = open_rows(
                stream.source, done=self._rows, position=self._at, index=stream.index, count=stream.count
            )
        for number, row in self._source:
            mine = self._source.is_divided or self._rows % stream.count == stream.index
            self._rows += 1
            parts = self._checked(self._source.unit, number, row) if mine else None
            if parts is not None and stream.takes(parts):
                self._found = True
                return parts
        return None

    def _checked(self, unit: str, number: int, row: Any) -> Parts | None:
        """The document of a row, or None for a bad one that may be skipped."""
        source = self._stream.source
        _, parts = check_row(number, row, source.data)
        if not isinstance(parts, str):
            return parts
        if source.data.on_bad_row == "error":
            raise bad_rows_error(source.name, unit, [(number, parts)], self._rows, BAD_ROWS_ADVICE)
        if not self._skipped:
            _log.warning("%s: skipping bad rows; the first is %s %d: %s", source.name, unit, number, parts)
        self._skipped += 1
        return None
