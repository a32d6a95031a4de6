"""Rows and tokenised data sets made on the spot."""

from __future__ import annotations

import numpy as np

from jaxdistill.data import Rows, TokenizedDataset
from jaxdistill.data.token_cache import Ragged

WORDS = [*"the a film is good bad very dull fun not and it was un ##watch ##able great plot".split(), *",.\"'"]  # noqa: SIM905


def make_rows(*texts: list[str], labels: list[int | str | None] | None = None, source: str = "made.csv") -> Rows:
    """Rows numbered as the lines of a file with a header."""
    numbers = np.arange(2, 2 + len(texts[0]), dtype=np.int64)
    return Rows(texts=texts, labels=labels, row_numbers=numbers, source=source, unit="line")


def make_dataset(lengths: list[int], *, tokenizers: int = 1, max_length: int | None = None) -> TokenizedDataset:
    """Examples of the given lengths (at least 1) whose tokens tell which example they belong to."""
    encodings = []
    for place in range(tokenizers):
        sizes = np.maximum(1, np.asarray(lengths) - place)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        ids = np.repeat(np.arange(len(lengths)), sizes).astype(np.int32) + 1000 * (place + 1)
        types = (np.arange(offsets[-1]) % 2).astype(np.uint8)
        encodings.append(Ragged(ids, offsets, types, pad_id=place))
    longest = np.asarray(lengths, np.int32)
    labels = np.arange(len(lengths), dtype=np.int32) % 3
    return TokenizedDataset(tuple(encodings), labels, longest, 0, max_length, "made")
