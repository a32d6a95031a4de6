"""Documents to tokens and labels: the one place where labels are shifted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from jaxdistill.data.text.records import Parts
from jaxdistill.data.tokenize import Tokenizer

NO_LABEL = -100
"""Label of a position that the loss does not count."""

_VERSION = 1

Block = dict[str, np.ndarray]
"""Several documents: tokens int32 [T, 2] (token and label, or mark), offsets int64 [n + 1]."""

Encoder: TypeAlias = Callable[[Sequence[Parts]], Block]
"""Documents to tokens; picklable, and the same in every process."""


class TextEncoder:
    """Documents to tokens and labels; picklable, and the same in every process.

    A document is its text's tokens with the special tokens that the tokenizer adds and, if it has an end-of-sequence
    token and does not add it, that one last. labels[t] is the token after t in the same document; the last has none
    (−100). Prompt and completion are tokenised apart, so that the completion's first token is the first label: the
    prompt's positions before the one that predicts it have none.

    version: what decides the tokens besides the tokenizer.

    Args:
      tokenizer: a language model's.
      is_prompted: documents are prompt and completion.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_prompted: bool) -> None:
        import tokenizers

        self.version = f"{_VERSION} {tokenizers.__version__} {is_prompted}"
        # The parts of a transformers tokenizer that pickle small and load without transformers.
        self._backend = tokenizer.backend
        end = tokenizer.eos_id
        self._prefix, suffix = special_tokens(self._backend)
        self._end = [] if end is None or end in suffix else [int(end)]
        self._suffix = [*suffix, *self._end]
        self._is_prompted = is_prompted

    def __call__(self, documents: Sequence[Parts]) -> Block:
        """n documents → their tokens and labels."""
        if self._is_prompted:
            prompts = self._encode([prompt for prompt, _ in documents], special=False)
            completions = self._encode([completion for _, completion in documents], special=False)
            unlabelled = [len(self._prefix) + len(prompt) - 1 for prompt in prompts]
            lists = [
                [*self._prefix, *prompt, *completion, *self._suffix]
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
            return _block(lists, unlabelled)
        lists = self._encode([text for (text,) in documents], special=True)
        return _block([ids + self._end for ids in lists] if self._end else lists)

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=special)]


def special_tokens(backend: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text."""
    probes = (text for text in ("a", *backend.get_vocab()) if backend.encode(text, add_special_tokens=False).ids)
    probe = backend.encode(next(probes))
    own = [place for place, special in enumerate(probe.special_tokens_mask) if not special]
    return probe.ids[: own[0]], probe.ids[own[-1] + 1 :]


def _block(lists: Sequence[list[int]], unlabelled: Sequence[int] = ()) -> Block:
    """Documents' ids side by side, each with its shifted labels; the first `unlabelled` of a document have none."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    tokens = np.empty((int(offsets[-1]), 2), np.int32)
    tokens[:, 0] = np.fromiter(chain.from_iterable(lists), np.int32, len(tokens))
    tokens[:-1, 1] = tokens[1:, 0]
    tokens[offsets[1:][np.diff(offsets) > 0] - 1, 1] = NO_LABEL
    for start, count in zip(offsets, unlabelled, strict=False):
        tokens[start : start + max(count, 0), 1] = NO_LABEL
    return {"tokens": tokens, "offsets": offsets}
