"""Documents to blocks of tokens, in the order in which they are trained on or evaluated, in processes or threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxdistill.data.text.encode import Block, Encoder
from jaxdistill.data.text.store import StoredDocuments
from jaxdistill.data.text.stream import Stream, StreamBlocks

BLOCK = 32
"""Documents that are tokenised together, and pass from one process to another together."""

_READ_AHEAD = 4
_NEVER = 2**62


def stored_blocks(
    documents: StoredDocuments,
    encoder: Encoder,
    *,
    seed: int | None,
    repeat: bool = False,
    index: int = 0,
    count: int = 1,
    workers: int = 0,
) -> grain.IterDataset:
    """Tokens of documents with random access.

    Args:
      documents: N ≥ count of them.
      encoder: to tokens and labels.
      seed: of the order, another one each epoch; None: as they are stored.
      repeat: again and again.
      index, count: which of the processes that divide the documents.
      workers: processes that tokenise (0: a thread of this one). The blocks and their order do not depend on it.
    """
    places = document_order(len(documents), seed)[index::count]
    blocks = places.batch(BLOCK, batch_fn=list).map(EncodeStored(documents, encoder))
    if repeat:
        blocks = blocks.repeat()
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
    return _in_workers(blocks.to_iter_dataset(ahead), workers)


def streamed_blocks(
    stream: Stream, encoder: Encoder, *, seed: int | None, window: int, repeat: bool = False, workers: int = 0
) -> grain.IterDataset:
    """Tokens of documents in the order of their source, shuffled within windows of `window` documents.

    The arguments are those of `stored_blocks`. Each worker reads the whole stream and tokenises its share; a hub data
    set, which each would have to download, has one worker at most.
    """
    blocks = StreamBlocks(stream, block=BLOCK, window=window, seed=seed, repeat=repeat).map(encoder)
    return _in_workers(blocks, workers if stream.source.source.hub is None else min(workers, 1))


def document_order(size: int, seed: int | None) -> grain.MapDataset:
    """The places of `size` documents, shuffled anew each epoch."""
    places = grain.MapDataset.range(size)
    if seed is None:
        return places
    # Grain takes seed + epoch: mixed, or seeds 0 and 1 would give each other's epochs.
    return places.shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))


@dataclass(frozen=True)
class EncodeStored:
    """Tokenises documents by index; picklable."""

    documents: StoredDocuments
    encoder: Encoder

    def __call__(self, indices: Any) -> Block:
        return self.encoder([self.documents[index] for index in indices])


def _in_workers(blocks: grain.IterDataset, workers: int) -> grain.IterDataset:
    if not workers:
        return blocks
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes read flags, which only an absl program has parsed
    # Through pipes: a block is small, and shared memory is scarce in containers and outlives a process that is killed.
    plain = grain.experimental.DatasetOptions(min_shm_size=_NEVER)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_READ_AHEAD)
    blocks = grain.experimental.WithOptionsIterDataset(blocks, plain)
    return blocks.mp_prefetch(options, worker_init_fn=_begin_worker)


def _begin_worker(index: int, count: int) -> None:
    """A worker is one process and tokenises in one thread."""
    del index, count
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def read_ahead(batches: grain.IterDataset) -> grain.IterDataset:
    """The same, made in a thread before they are asked for."""
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_READ_AHEAD)
