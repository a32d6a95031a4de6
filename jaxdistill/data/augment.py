"""Variants of the training text for teachers to label.

A small student learns the teacher's function where it sees it, and a few thousand labelled rows show it little. Words
masked or replaced and pieces of sentences are text the teacher can label as well as any (Tang et al. 2019,
arXiv:1903.12136, section 3.3; TinyBERT's augmentation, arXiv:1909.10351, is of the same kind).
"""

from __future__ import annotations

import numpy as np

from jaxdistill.config.data_schema import AugmentConfig
from jaxdistill.data.rows import Rows

_LONGEST_PIECE = 5


def augment(rows: Rows, config: AugmentConfig, *, mask_token: str | None) -> Rows:
    """`copies` variants of every row that has two words or more, without labels, each different from all rows.

    In each variant a word is masked with probability `mask`, else replaced with probability `replace` by one drawn
    from all words of the rows' column, as often as it occurs there; with probability `ngram` only one to five
    consecutive words are kept. Words are what spaces separate. Pairs vary in both texts. The same rows and
    configuration give the same variants.

    Args:
      rows: N rows.
      config: how many variants, how far from the row, and the seed.
      mask_token: the tokenizer's.

    Returns:
      at most `copies` · N rows; `row_numbers` are those of the rows they come from.

    Raises:
      ValueError: words are to be masked and there is no mask token.
    """
    if config.mask and mask_token is None:
        raise ValueError("mask: the tokenizer has no mask token; set it to 0")
    rng = np.random.default_rng(config.seed)
    columns = [[text.split() for text in column] for column in rows.texts]
    words = [np.asarray([word for text in column for word in text], dtype=object) for column in columns]
    seen = {tuple(" ".join(text) for text in texts) for texts in zip(*columns, strict=True)}
    made: list[tuple[str, ...]] = []
    numbers: list[int] = []
    for number, texts in zip(rows.row_numbers, zip(*columns, strict=True), strict=True):
        if max(map(len, texts)) < 2:
            continue
        for _ in range(config.copies):
            variant = tuple(
                _variant(text, drawn, config, mask_token, rng) for text, drawn in zip(texts, words, strict=True)
            )
            if variant not in seen:
                seen.add(variant)
                made.append(variant)
                numbers.append(int(number))
    variants = tuple([variant[column] for variant in made] for column in range(len(columns)))
    return Rows(variants, None, np.asarray(numbers, np.int64), f"variants of {rows.source}", unit=rows.unit)


def _variant(
    text: list[str], words: np.ndarray, config: AugmentConfig, mask_token: str | None, rng: np.random.Generator
) -> str:
    """One variant of one text."""
    first, last = 0, len(text)
    if len(text) > 1 and rng.random() < config.ngram:
        size = int(rng.integers(1, min(_LONGEST_PIECE, len(text)) + 1))
        first = int(rng.integers(0, len(text) - size + 1))
        last = first + size
    chosen = list(text[first:last])
    chances = rng.random(len(chosen))
    for place in np.flatnonzero(chances < config.mask + config.replace):
        masked = chances[place] < config.mask
        chosen[place] = str(mask_token) if masked else words[int(rng.integers(len(words)))]
    return " ".join(chosen)
