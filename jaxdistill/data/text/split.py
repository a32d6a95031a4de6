"""A split of a language model's data: its training batches, its evaluation batches and what they depend on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxdistill.config.data_schema import DataConfig, PromptConfig, SourceConfig
from jaxdistill.data import assets
from jaxdistill.data.text.encode import TextEncoder
from jaxdistill.data.text.records import local_path
from jaxdistill.data.text.store import DocumentStore, StoredDocuments, open_store
from jaxdistill.data.tokenize import Tokenizer
from jaxdistill.errors import DataError, ExternalError

if TYPE_CHECKING:
    import grain

Split = Literal["train", "validation", "test"]

_BLOCK = 32
"""Documents that are tokenised together, and pass from one process to another together."""
_READ_AHEAD = 4


def open_split(
    data: DataConfig,
    split: Split,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    base_dir: Path | None = None,
    cache_dir: Path | None = None,
) -> TextSplit | None:
    """Opens one split of a language model's data, or the share of train that is validation when that is left out.

    Args:
      data: with task causal_lm.
      split: which.
      tokenizer: the models' own.
      sequence_length: S, tokens a row.
      base_dir: what a relative path is relative to (default: the current directory).
      cache_dir: where documents are kept (default: the user's cache).

    Returns:
      The split, or None if the data has no such one.

    Raises:
      DataError: as `load_rows`; or the share that would be held out, or what is left, is empty.
      ExternalError: the hub or the disk cannot be read.
    """
    carved = split != "test" and data.validation is None
    source = data.train if carved else getattr(data, split)
    if source is None:
        return None
    content = _content(data, source, base_dir)
    store = open_store(data, source, content=content, base_dir=base_dir, cache_dir=cache_dir)
    documents = _chosen(store, data.validation_share, split) if carved else StoredDocuments(store, range(len(store)))
    return TextSplit(
        documents,
        TextEncoder(tokenizer, is_prompted=isinstance(data.text, PromptConfig)),
        data,
        pad_id=tokenizer.pad_id,
        sequence_length=sequence_length,
        fingerprint=_digest(content, tokenizer.fingerprint, sequence_length, data.packing, split if carved else "all"),
    )


def _content(data: DataConfig, source: SourceConfig, base_dir: Path | None) -> str:
    """Fingerprint of everything that decides the documents of a source and their order."""
    path = local_path(source, base_dir)
    if source.asset is not None:
        path = assets.split_path(source.asset, source.split)
    if path is not None and path.is_file():
        try:
            with path.open("rb") as file:
                identity: list[Any] = [path.suffix.lower(), hashlib.file_digest(file, "sha256").hexdigest()]
        except OSError as error:
            raise ExternalError(f"{path}: cannot be read: {error.strerror or error}") from error
    else:
        identity = [source.path, source.hub, source.config, source.split, source.revision]
    return _digest(*identity, data.columns, data.sample_by, source.limit, data.on_bad_row)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _chosen(store: DocumentStore, share: float, split: Split) -> StoredDocuments:
    """The documents held out by hash, or the others."""
    held_out = store.shares() < share
    if held_out.all() or not held_out.any():
        side = "training" if held_out.all() else "validation"
        raise DataError(
            f"{store.source}: splitting off {share:g} of {len(store)} documents by hash leaves none for {side}; "
            "give a validation file (data.validation) or change data.validation_share or data.sample_by"
        )
    return StoredDocuments(store, np.flatnonzero(held_out if split == "validation" else ~held_out))


class TextSplit:
    """The documents of one split and the batches they make.

    source: its name in messages. fingerprint: of the content and everything else that decides the rows.
    sequence_length: S.
    """

    def __init__(
        self,
        documents: StoredDocuments,
        encoder: TextEncoder,
        data: DataConfig,
        *,
        pad_id: int,
        sequence_length: int,
        fingerprint: str,
    ) -> None:
        self.source, self.fingerprint, self.sequence_length = documents.store.source, fingerprint, sequence_length
        self._documents, self._encoder, self._data, self._pad_id = documents, encoder, data, pad_id

    def describe(self) -> dict[str, int | None]:
        """documents; tokens, None as long as they were not counted; skipped bad rows."""
        counted = "_lengths" in self.__dict__
        tokens = int(self._lengths.sum()) if counted else None
        return {"documents": len(self._documents), "tokens": tokens, "skipped": self._documents.store.skipped}

    def rows_per_epoch(self, *, seed: int = 0) -> int:
        """Rows that all documents make once. First-fit's depend a little on their order: in that of `seed`.

        Tokenises all documents the first time.
        """
        return self._count(seed, 0, 1)

    def train_iterator(
        self,
        *,
        batch_size: int,
        seed: int,
        steps: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> grain.DatasetIterator:
        """The batches of a run: this process's part of each, [batch_size / process_count, S].

        Args:
          batch_size: rows of all processes together, a multiple of their number.
          seed: of the order; the same seed gives the same batches.
          steps: of the run.
          process_index, process_count: which documents are read (default: JAX's).

        Returns:
          A Grain `DatasetIterator` over dictionaries of int32 arrays: input_ids, segment_ids, positions, labels [B, S],
          example_id [B]. `get_state()` is small and JSON; `set_state()` of it, on any iterator made with the same
          arguments, continues with exactly the batches that would have followed.

        Raises:
          DataError: fewer documents than processes; or, without `repeat`, fewer rows than `steps` need.
        """
        from jaxdistill.data.text import packing
        from jaxdistill.data.text.iterator import TrainIterator

        index, count = _processes(process_index, process_count)
        if batch_size % count:
            raise DataError(f"{self.source}: batch size {batch_size} is not a multiple of the {count} processes")
        if len(self._documents) < count:
            raise DataError(
                f"{self.source}: {len(self._documents)} documents cannot be divided among {count} processes; give more "
                "data, or use smaller documents (data.sample_by)"
            )
        if not self._data.repeat:
            self._check_steps(batch_size // count, seed, steps, count)
        batches = self._batches(self._blocks(seed, index, count), batch_size // count, seed=seed)
        batches = batches.map_with_index(packing.Number(index, count))
        layout = {"process_index": index, "process_count": count, "workers": self._data.workers}
        return TrainIterator(_read_ahead(batches), steps=steps, layout=layout, name=self.source)

    def eval_batches(self, *, batch_size: int) -> EvalBatches:
        """All documents in order, packed, in batches that are the same in every process."""
        return EvalBatches(self, batch_size)

    def _eval_iterator(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        from jaxdistill.data.text import packing

        batches = self._batches(self._blocks(None, 0, 1), batch_size, seed=None)
        iterator = iter(_read_ahead(batches.map_with_index(packing.Number(0, 1))))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _blocks(self, seed: int | None, index: int, count: int) -> grain.IterDataset:
        """Tokens of blocks of documents: shuffled anew each epoch, or in order and once without a seed."""
        import grain

        places = grain.MapDataset.range(len(self._documents))
        if seed is not None:
            places = places.shuffle(_mixed(seed))
        blocks = places[index::count].batch(_BLOCK, batch_fn=list).map(_Encode(self._documents, self._encoder))
        if seed is not None and self._data.repeat:
            blocks = blocks.repeat()
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
        return _in_workers(blocks.to_iter_dataset(ahead), self._data.workers)

    def _batches(self, blocks: grain.IterDataset, batch_size: int, *, seed: int | None) -> grain.IterDataset:
        from jaxdistill.data.text import packing

        rows = packing.pack(blocks, packing=self._data.packing, length=self.sequence_length, seed=seed)
        return rows.batch(batch_size, batch_fn=packing.Batch(batch_size, self._pad_id))

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        """int32 [N] tokens of each document."""
        encode = _Encode(self._documents, self._encoder)
        size = len(self._documents)
        blocks = (range(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))
        return np.concatenate([np.diff(encode(block)["offsets"]) for block in blocks]).astype(np.int32)

    def _count(self, seed: int, index: int, count: int) -> int:
        """Rows of one process in the first epoch."""
        import grain

        from jaxdistill.data.text import packing

        lengths = self._lengths
        if self._data.packing == "first_fit":
            order = grain.MapDataset.range(len(lengths)).shuffle(_mixed(seed))[index::count]
            lengths = lengths[np.asarray([order[place] for place in range(len(order))])]
        return packing.count_rows(lengths, packing=self._data.packing, length=self.sequence_length, block=_BLOCK)

    def _check_steps(self, batch_size: int, seed: int, steps: int, count: int) -> None:
        rows = min(self._count(seed, index, count) for index in range(count))
        available = -(-rows // batch_size)
        if available < steps:
            raise DataError(
                f"{self.source}: the data is enough for {available} steps, but the run has {steps}; set "
                f"data.repeat=true, train.steps={available}, or give more data"
            )


class EvalBatches:
    """Dictionaries as of `TextSplit.train_iterator`; example_id is the row's number, −1 of rows that fill the last."""

    def __init__(self, split: TextSplit, batch_size: int) -> None:
        self.split, self.batch_size = split, batch_size

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.split._eval_iterator(self.batch_size)


@dataclass(frozen=True)
class _Encode:
    """Tokenises documents by index; picklable."""

    documents: StoredDocuments
    encoder: TextEncoder

    def __call__(self, indices: Any) -> dict[str, np.ndarray]:
        return self.encoder([self.documents[index] for index in indices])


def _in_workers(blocks: grain.IterDataset, workers: int) -> grain.IterDataset:
    """The same blocks in the same order, made by so many processes (0: by this one)."""
    import grain
    from absl import flags

    if not workers:
        return blocks
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes read flags, which only an absl program has parsed
    return blocks.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_READ_AHEAD))


def _read_ahead(batches: grain.IterDataset) -> grain.IterDataset:
    import grain

    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_READ_AHEAD)


def _processes(index: int | None, count: int | None) -> tuple[int, int]:
    import jax

    return (jax.process_index() if index is None else index), (jax.process_count() if count is None else count)


def _mixed(seed: int) -> int:
    """A 32-bit seed (Grain's own seed + epoch would give seeds 0 and 1 each other's epochs)."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
