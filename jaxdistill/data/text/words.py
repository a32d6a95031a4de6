"""Documents to tokens and the words they make up, for a masked language model; separators are put around later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from jaxdistill.data.text.encode import NO_LABEL, Block, special_tokens
from jaxdistill.data.text.records import Parts
from jaxdistill.data.tokenize import Tokenizer

BEGINS, CONTINUES, SPECIAL = 1, 0, NO_LABEL
"""What stands beside each token: it begins a word, goes on with one, or is none that could be masked."""

_VERSION = 1


class WordEncoder:
    """Documents to tokens, without the tokenizer's separators, each beside what it is of a word; picklable.

    version: what decides the tokens besides the tokenizer.

    Args:
      tokenizer: a masked language model's.
      whole_words: words as the tokenizer divides text into them; otherwise every token is one.
    """

    def __init__(self, tokenizer: Tokenizer, *, whole_words: bool) -> None:
        import tokenizers

        self.version = f"words {_VERSION} {tokenizers.__version__} {whole_words}"
        self._backend = tokenizer.backend
        self._special = np.asarray(tokenizer.special_ids, np.int32)
        self._whole_words = whole_words

    def __call__(self, documents: Sequence[Parts]) -> Block:
        """n documents → their tokens and marks."""
        # word ids are not kept by the faster of the two
        encode = self._backend.encode_batch if self._whole_words else self._backend.encode_batch_fast
        encodings = encode([text for (text,) in documents], add_special_tokens=False)
        offsets = np.zeros(len(encodings) + 1, np.int64)
        np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
        tokens = np.empty((int(offsets[-1]), 2), np.int32)
        tokens[:, 0] = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, len(tokens))
        tokens[:, 1] = BEGINS
        if self._whole_words:
            tokens[:, 1] = np.fromiter(chain.from_iterable(_begins(e.word_ids) for e in encodings), bool, len(tokens))
        tokens[np.isin(tokens[:, 0], self._special), 1] = SPECIAL
        return {"tokens": tokens, "offsets": offsets}


def _begins(words: Sequence[int | None]) -> list[bool]:
    """Of each token whether it is the first of its word; what is in no word is one by itself."""
    return [word is None or word != before for word, before in zip(words, [None, *words], strict=False)]


@dataclass(frozen=True)
class Separators:
    """Puts a tokenizer's tokens before and after a piece of a document; what it begins with begins a word."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Separators:
        """[CLS] … [SEP], or as the tokenizer writes them."""
        return cls(*map(tuple, special_tokens(tokenizer.backend)))

    @property
    def size(self) -> int:
        """How many there are around a piece."""
        return len(self.before) + len(self.after)

    def __call__(self, piece: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        inner = piece["tokens"]
        around = [np.asarray([(token, SPECIAL) for token in side]).reshape(-1, 2) for side in (self.before, self.after)]
        tokens = np.concatenate([around[0], inner, around[1]]).astype(inner.dtype)
        first = tokens[len(self.before) : len(self.before) + 1, 1]
        np.copyto(first, BEGINS, where=first == CONTINUES)
        return {"tokens": tokens}
