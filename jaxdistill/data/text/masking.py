"""Dynamic masking: which tokens of a row a masked language model has to find again, and what it reads instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdistill.config.data_schema import MaskingConfig
from jaxdistill.data.text.encode import NO_LABEL
from jaxdistill.data.text.words import BEGINS, SPECIAL
from jaxdistill.data.tokenize import Tokenizer
from jaxdistill.errors import ModelError

EVALUATION_SEED = 2**63
"""Of the masks that models are measured with: one no run has, so that every evaluation of a text is the same."""


@dataclass(frozen=True)
class Masking:
    """Hides tokens of numbered batches (arXiv:1810.04805), by the row's number and a seed alone.

    A row's number in the run is another one each epoch, and so are its masks; the same row of the same run has the
    same ones whoever makes it, before and after a resume.

    Of a row's n tokens that are not special, n · probability are chosen (rounded at random, so that the mean is
    exact): single ones, or words in random order that still fit. Of them a share `mask` becomes the mask token,
    `random` any ordinary token, each drawn for itself, and the rest stay.

    Args:
      config: the shares.
      mask_id: the mask token.
      ordinary: ids of the tokens that are not special.
      places: K, places for chosen tokens in every row: at least `most_places`.
      packed: rows hold several pieces, which are told apart by segment_ids and positions; else both are left out.
    """

    config: MaskingConfig
    mask_id: int
    ordinary: np.ndarray
    places: int
    packed: bool

    def __call__(self, batch: dict[str, Any], *, seed: int) -> dict[str, np.ndarray]:
        """A batch with marks of words as labels to what an encoder reads.

        Returns:
          input_ids, attention_mask and, if packed, segment_ids and positions, int32 [B, S]; masked_positions int32
          [B, K], ascending, then 0; labels int32 [B, K], the tokens that were there, then −100; example_id as it was.
        """
        ids, marks = batch["input_ids"], batch["labels"]
        draws = np.stack([_draws(seed, int(number), ids.shape[1]) for number in batch["example_id"]])
        maskable = marks != SPECIAL
        target = np.floor(maskable.sum(axis=1) * self.config.probability + draws[:, 0, 3]).astype(np.int64)
        chosen = _choose(draws[..., 0], marks, np.minimum(target, self.places))
        kind, drawn = draws[..., 1], draws[..., 2]
        others = self.ordinary[(drawn * len(self.ordinary)).astype(np.int64)]
        hidden = np.where(kind < self.config.mask, np.int32(self.mask_id), others)
        replaced = chosen & (kind < self.config.mask + self.config.random)
        positions = np.argsort(~chosen, axis=1, kind="stable")[:, : self.places]
        counted = np.arange(self.places) < chosen.sum(axis=1, keepdims=True)
        labels = np.where(counted, np.take_along_axis(ids, positions, axis=1), np.int32(NO_LABEL))
        apart = {name: batch[name] for name in ("segment_ids", "positions") if self.packed}
        return {
            "input_ids": np.where(replaced, hidden, ids).astype(np.int32),
            "attention_mask": (batch["segment_ids"] > 0).astype(np.int32),
            **apart,
            "masked_positions": np.where(counted, positions, 0).astype(np.int32),
            "labels": labels.astype(np.int32),
            "example_id": batch["example_id"],
        }


def most_places(config: MaskingConfig, length: int) -> int:
    """The most tokens that are chosen of a row of `length` tokens that are not special."""
    return max(1, min(length, math.ceil(length * config.probability)))


def make_masking(config: MaskingConfig, tokenizer: Tokenizer, *, length: int, packed: bool) -> Masking:
    """Of rows that hold at most `length` tokens that are not special.

    Raises:
      ModelError: the tokenizer has no mask token.
    """
    if tokenizer.mask_id is None:
        raise ModelError(
            f"tokenizer {tokenizer.name} has no mask token, behind which data.task masked_lm hides others; use a "
            "masked language model's tokenizer, or name the token as mask_token in its tokenizer_config.json"
        )
    ordinary = np.asarray(sorted(tokenizer.tokens().keys() - set(tokenizer.special_ids)), np.int32)
    return Masking(config, tokenizer.mask_id, ordinary, most_places(config, length), packed)


def _draws(seed: int, number: int, length: int) -> np.ndarray:
    """Numbers in [0, 1) for each position of a row, float64 [S, 4]; those of a position do not depend on S."""
    key = np.asarray([seed, number % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((length, 4))


def _choose(keys: np.ndarray, marks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """bool [B, S]: whole words by rising key, each that does not bring its row above `target` tokens."""
    rows = np.arange(len(marks))
    begins, maskable = marks == BEGINS, marks != SPECIAL
    words = np.cumsum(begins, axis=1) - 1
    sizes = np.zeros(marks.shape, np.int64)
    owner = np.broadcast_to(rows[:, None], marks.shape)
    np.add.at(sizes, (owner[maskable], words[maskable]), 1)
    word_keys = np.full(marks.shape, np.inf)
    word_keys[owner[begins], words[begins]] = keys[begins]
    order = np.argsort(word_keys, axis=1, kind="stable")
    taken, left = np.zeros(marks.shape, bool), target.copy()
    for place in range(int(begins.sum(axis=1).max(initial=0))):
        word = order[:, place]
        size = sizes[rows, word]
        fits = (size > 0) & (size <= left)
        taken[rows, word] = fits
        left -= np.where(fits, size, 0)
        if not left.any():
            break
    return maskable & np.take_along_axis(taken, np.maximum(words, 0), axis=1)
