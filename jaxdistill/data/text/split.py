"""A split of a language model's data: its training batches, its evaluation batches and what they depend on."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxdistill.config.data_schema import DataConfig
from jaxdistill.data.sources import reading
from jaxdistill.data.text.masking import EVALUATION_SEED
from jaxdistill.data.text.records import TextSource, digest
from jaxdistill.data.text.row_format import RowFormat, row_format
from jaxdistill.data.text.store import DocumentStore, StoredDocuments, open_store
from jaxdistill.data.tokenize import Tokenizer
from jaxdistill.errors import ConfigError, DataError

if TYPE_CHECKING:
    import grain

    from jaxdistill.data.text.packing import Number
    from jaxdistill.data.text.stream import Stream

Side = Literal["held out", "kept", "all"]


def open_split(
    data: DataConfig,
    split: Literal["train", "validation", "test"],
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    base_dir: Path | None = None,
    cache_dir: Path | None = None,
) -> TextSplit | None:
    """Opens one split of a language model's data; validation is a share of train, by hash, when it is left out.

    Args:
      data: with task causal_lm or masked_lm.
      split: which.
      tokenizer: the models' own.
      sequence_length: S, tokens a row.
      base_dir: what a relative path is relative to (default: the current directory).
      cache_dir: where documents are kept (default: the user's cache).

    Returns:
      The split, or None if the data has no such one.

    Raises:
      DataError: nothing there, an unusable file, a missing column, no document, or bad rows (with `on_bad_row:
        error`; when streaming, those are found as they are read); or the share that would be held out, or what would
        be left, is empty.
      ExternalError: the hub or the disk cannot be read.
      ModelError: a masked language model's tokenizer without a mask token.
    """
    carved = split != "test" and data.validation is None
    config = data.train if carved else getattr(data, split)
    if config is None:
        return None
    side: Side = "all" if not carved else "held out" if split == "validation" else "kept"
    source = TextSource(data, config, base_dir)
    if data.streaming:
        from jaxdistill.data.text.stream import Stream

        documents: StoredDocuments | Stream = Stream(source, side, data.validation_share)
        with reading(source.name):
            content = source.fingerprint()
        documents.check()
    else:
        store = open_store(source, cache_dir=cache_dir)
        documents, content = _on_side(store, side, data.validation_share), store.fingerprint
    rows = row_format(data, tokenizer, sequence_length)
    key = digest(content, side, data.validation_share if carved else None, tokenizer.fingerprint, rows.encoder.version)
    return TextSplit(documents, rows, data, key=key, cache_dir=cache_dir)


def _on_side(store: DocumentStore, side: Side, share: float) -> StoredDocuments:
    """The documents held out by hash, the others, or all."""
    if side == "all":
        return StoredDocuments(store, range(len(store)))
    held_out = store.shares() < share
    if held_out.all() or not held_out.any():
        empty = "training" if held_out.all() else "validation"
        raise DataError(
            f"{store.source}: splitting off {share:g} of {len(store)} documents by hash leaves none for {empty}; "
            "give a validation file (data.validation) or change data.validation_share or data.sample_by"
        )
    return StoredDocuments(store, np.flatnonzero(held_out if side == "held out" else ~held_out))


class TextSplit:
    """The documents of one split, and the batches they make.

    source: its name in messages. fingerprint: of everything that decides the rows (but for the seed). rows_fingerprint:
    of the rows that all documents make once, in order. sequence_length: S. pad_id: the token of padding.
    """

    def __init__(
        self,
        documents: StoredDocuments | Stream,
        rows: RowFormat,
        data: DataConfig,
        *,
        key: str,
        cache_dir: Path | None = None,
    ) -> None:
        self._documents, self._rows, self._data = documents, rows, data
        self._key, self.pad_id, self._cache_dir = key, rows.pad_id, cache_dir
        self.sequence_length = rows.length
        self.source = documents.store.source if isinstance(documents, StoredDocuments) else documents.source.name
        window = data.shuffle_window if data.streaming else None
        self.fingerprint = digest(key, rows.pad_id, rows.length, rows.packing, data.repeat, window, *rows.masked)
        self.rows_fingerprint = digest(key, rows.pad_id, rows.length, rows.packing)

    @property
    def packing(self) -> str:
        """How documents are put into rows."""
        return self._rows.packing

    @property
    def labels_per_row(self) -> int:
        """How many tokens of a row the loss can count: all, or the places for masked ones."""
        masking = self._rows.masking
        return self.sequence_length if masking is None else masking.places

    def describe(self) -> dict[str, int | None]:
        """documents and skipped bad rows (None when streaming), and tokens (None as long as they were not counted)."""
        if not isinstance(self._documents, StoredDocuments):
            return {"documents": None, "skipped": None, "tokens": None}
        tokens = int(self._token_counts.sum()) if "_token_counts" in self.__dict__ else None
        return {"documents": len(self._documents), "skipped": self._documents.store.skipped, "tokens": tokens}

    def rows_per_epoch(self, *, seed: int = 0) -> int:
        """Rows that all documents make once; tokenises them the first time.

        Args:
          seed: of the order, on which first-fit's rows depend a little.

        Raises:
          ConfigError: the data is streamed.
        """
        documents = self._documents
        if not isinstance(documents, StoredDocuments):
            raise ConfigError(
                f"data.streaming: {self.source} is streamed, and how many sequences an epoch has is not known before "
                "it was read; give train.steps instead of train.epochs, or set data.streaming=false"
            )
        return self._count_rows(seed=seed)

    def check_steps(self, *, batch_size: int, seed: int, steps: int, process_count: int | None = None) -> None:
        """Whether there is enough for a run, as far as can be known before it; arguments as of `train_iterator`.

        Without `repeat`, the last batch may hold filler rows, and so may the last ones of a process whose documents
        are used up before those of another; all documents are tokenised the first time.

        Raises:
          DataError: there is not.
        """
        _, count = _processes(0, process_count)
        if batch_size % count:
            raise DataError(f"{self.source}: batch size {batch_size} is not a multiple of the {count} processes")
        documents = self._documents
        if not isinstance(documents, StoredDocuments):
            return
        if len(documents) < count:
            raise DataError(
                f"{self.source}: {len(documents)} documents cannot be divided among {count} processes; give more "
                "data, or smaller documents (data.sample_by)"
            )
        if self._data.repeat:
            return
        rows = max(self._count_rows(seed=seed, index=index, count=count) for index in range(count))
        available = -(-rows // (batch_size // count))
        if available < steps:
            raise DataError(
                f"{self.source}: the data is enough for {available} steps, but the run has {steps}; set "
                f"data.repeat=true or train.steps={available}, or give more data"
            )

    def train_iterator(
        self,
        *,
        batch_size: int,
        seed: int,
        steps: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> grain.DatasetIterator:
        """The batches of a run: of each, this process's part.

        Args:
          batch_size: rows of all processes together, a multiple of their number P.
          seed: of the order; the same seed gives the same batches.
          steps: of the run.
          process_index, process_count: the processes divide the documents (default: JAX's).

        Returns:
          A Grain `DatasetIterator` over dictionaries of int32 arrays: input_ids, segment_ids (1 … within a row, 0:
          padding), positions (from 0 in each segment), labels [batch_size / P, S] (already shifted, −100: none), and
          example_id [batch_size / P] (the row's number in the run, −1: filler); for a masked language model what
          `masking.Masking` makes of them. `get_state()` is small and JSON;
          `set_state()` of it, on any iterator made with the same arguments, continues with exactly the batches that
          would have followed. Close it when it is no longer needed.

        Raises:
          DataError: this process finds no document; or, without `repeat`, there are fewer rows than `steps` need
            (when streaming, that is found out at the step where they are used up).
        """
        from jaxdistill.data.text import blocks, packing
        from jaxdistill.data.text.iterator import TrainIterator

        index, count = _processes(process_index, process_count)
        self.check_steps(batch_size=batch_size, seed=seed, steps=steps, process_count=count)
        data, documents, size = self._data, self._documents, batch_size // count
        workers, filler = data.workers, None
        if isinstance(documents, StoredDocuments):
            if not data.repeat:  # there are enough batches, though perhaps not in this process
                filler = self.filler_batch(batch_size=size)
            tokens = blocks.stored_blocks(
                documents, self._rows.encoder, seed=seed, repeat=data.repeat, index=index, count=count, workers=workers
            )
        else:
            stream = replace(documents, index=index, count=count)
            stream.check()
            tokens = blocks.streamed_blocks(
                stream, self._rows.encoder, seed=seed, window=data.shuffle_window, repeat=data.repeat, workers=workers
            )
        batches = self._batches(tokens, size, seed=seed, process=packing.Number(index, count))
        return TrainIterator(
            blocks.read_ahead(batches),
            steps=steps,
            layout={"process_index": index, "process_count": count, "workers": workers, "batch_size": batch_size},
            name=self.source,
            filler=filler,
        )

    def packed_rows(self, *, batch_size: int, skip: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches of the rows that all documents make once, in order, from row `skip` on; example_id numbers them."""
        from jaxdistill.data.text import packing

        tokens, collate = self._tokens_in_order(), packing.Batch(batch_size, self.pad_id)
        rows = iter(packing.pack(tokens, packing=self._rows.packing, length=self.sequence_length, seed=None))
        try:
            remaining = islice(rows, skip, None)
            while taken := list(islice(remaining, batch_size)):
                batch, places = collate(taken), np.arange(batch_size)
                filled = batch.pop("filled")
                yield {**batch, "example_id": np.where(places < filled, skip + places, -1).astype(np.int32)}
                skip += filled
        finally:
            rows.close()

    def row_count(self) -> int:
        """Rows that all documents make once, in order; tokenises them the first time."""
        return self._count_rows(seed=None)

    def eval_batches(self, *, batch_size: int) -> EvalBatches:
        """All documents once and in order, packed, in batches [batch_size, S] that are the same in every process."""
        return EvalBatches(self, batch_size)

    def filler_batch(self, *, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of filler rows alone: the shapes and dtypes that all batches have; nothing is read."""
        from jaxdistill.data.text import packing

        batch = packing.filler_batch(batch_size, self.sequence_length, self.pad_id)
        return batch if self._rows.masking is None else self._rows.masking(batch, seed=0)

    def _eval_iterator(self, batch_size: int) -> Generator[dict[str, np.ndarray], None, None]:
        from jaxdistill.data.text import blocks, packing

        batches = self._batches(self._tokens_in_order(), batch_size, seed=None, process=packing.Number(0, 1))
        iterator = iter(blocks.read_ahead(batches))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _tokens_in_order(self) -> grain.IterDataset:
        from jaxdistill.data.text import blocks

        if isinstance(self._documents, StoredDocuments):
            return blocks.stored_blocks(self._documents, self._rows.encoder, seed=None)
        return blocks.streamed_blocks(self._documents, self._rows.encoder, seed=None, window=blocks.BLOCK)

    def _batches(
        self, tokens: grain.IterDataset, batch_size: int, *, seed: int | None, process: Number
    ) -> grain.IterDataset:
        """Numbered batches of packed rows; seed: None for evaluation."""
        from jaxdistill.data.text import packing

        rows = self._rows
        packed = packing.pack(
            tokens, packing=rows.packing, length=rows.length, seed=seed, separators=rows.separators
        ).batch(batch_size, batch_fn=packing.Batch(batch_size, rows.pad_id))
        numbered = packed.map_with_index(process)
        if rows.masking is None:
            return numbered
        return numbered.map(functools.partial(rows.masking, seed=EVALUATION_SEED if seed is None else seed))

    @functools.cached_property
    def _token_counts(self) -> np.ndarray:
        from jaxdistill.data.text.lengths import token_counts

        assert isinstance(self._documents, StoredDocuments)
        return token_counts(self._documents, self._rows.encoder, key=self._key, cache_dir=self._cache_dir)

    def _count_rows(self, *, seed: int | None, index: int = 0, count: int = 1) -> int:
        """Rows that one process's documents make in the first epoch."""
        from jaxdistill.data.text import blocks, packing

        counts = self._token_counts
        rows = self._rows
        if count > 1 or (seed is not None and rows.packing == "first_fit"):
            order = blocks.document_order(len(counts), seed)[index::count]
            counts = counts[np.asarray([order[place] for place in range(len(order))])]
        return packing.count_rows(
            counts, packing=rows.packing, length=rows.length, block=blocks.BLOCK, separators=rows.separators
        )


class EvalBatches:
    """Batches as of `TextSplit.train_iterator`, as often as they are asked for; filler rows complete the last.

    example_id is the row's number, in the order of the documents.
    """

    def __init__(self, split: TextSplit, batch_size: int) -> None:
        self.split, self.batch_size = split, batch_size

    def __iter__(self) -> Generator[dict[str, np.ndarray], None, None]:
        return self.split._eval_iterator(self.batch_size)

    def __len__(self) -> int:
        """Batches; the documents are tokenised to find out."""
        return self._length

    @functools.cached_property
    def _length(self) -> int:
        if isinstance(self.split._documents, StoredDocuments):
            return -(-self.split.row_count() // self.batch_size)
        return sum(1 for _ in self)


def _processes(index: int | None, count: int | None) -> tuple[int, int]:
    import jax

    return (jax.process_index() if index is None else index), (jax.process_count() if count is None else count)
