"""Which positions of a batch count: rows, tokens, labels, ends of documents. Read from the batch alone."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdistill.models.attention import same_segment
from jaxdistill.models.causal_attention import causal_mask
from jaxdistill.typing import Array, Batch, Bool

IGNORED_LABEL = -100


def real_examples(batch: Batch) -> Bool[Array, "*B"]:
    """Which rows hold an example, or which places of packed rows; elsewhere example_id is −1."""
    return batch["example_id"] >= 0


def labelled(batch: Batch) -> Bool[Array, "*B"]:
    """Which rows, or which tokens of them, carry a label."""
    return batch["labels"] != IGNORED_LABEL


def learned(batch: Batch) -> Bool[Array, "*B"]:
    """Which positions a teacher teaches: every example of a classifier, every token that has a label otherwise."""
    return real_examples(batch) if batch["labels"].ndim == 1 or packed_examples(batch) else labelled(batch)


def tokens(batch: Batch) -> Bool[Array, "B S"]:
    """Which tokens are no padding, labelled or not."""
    if packed_examples(batch):
        return batch["segment_ids"] > 0
    present = real_examples(batch)[:, None]
    if "segment_ids" in batch:
        present = present & (batch["segment_ids"] > 0)
    return present & batch["attention_mask"].astype(bool) if "attention_mask" in batch else present


def packed(batch: Batch) -> bool:
    """Whether rows hold several documents, which is where segment_ids are: a language model's, or a classifier's."""
    return "segment_ids" in batch


def packed_examples(batch: Batch) -> bool:
    """Whether rows hold several examples of a classifier, whose tokens attend to both sides."""
    return "segment_starts" in batch


def both_sides(batch: Batch) -> bool:
    """Of packed batches: whether tokens attend to those after them as well, a masked LM's or a classifier's."""
    return "masked_positions" in batch or packed_examples(batch)


def summaries(batch: Batch) -> Bool[Array, "B S"]:
    """The token of each packed document that stands for the whole: an encoder's first, a decoder's last."""
    segments = batch["segment_ids"]
    before, after = ((1, 0), (0, -1)) if both_sides(batch) else ((0, 1), (1, None))
    neighbours = jnp.pad(segments[:, slice(*after)], ((0, 0), before))
    return tokens(batch) & (segments != neighbours)


def attended(batch: Batch) -> Bool[Array, "B S S"] | None:
    """Which tokens (last axis) each token of a packed batch may attend to; None: all that are no padding."""
    if not packed(batch):
        return None
    segments = batch["segment_ids"]
    return same_segment(segments) if both_sides(batch) else causal_mask(segments.shape[1], segments, window=None)[:, 0]
