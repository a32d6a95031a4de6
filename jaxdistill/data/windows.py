"""Questions and contexts as tokens: a context too long for one sequence becomes several that overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data import token_cache
from jaxdistill.data.questions import Answer, QuestionRows
from jaxdistill.data.rows import bad_rows_error
from jaxdistill.data.token_cache import Ragged
from jaxdistill.data.tokenize import PerToken, TokenizedDataset, Tokenizer

_CHUNK = 256
_OUTSIDE = -1
"""In place of a character's number: the token is none of the context's."""


@dataclass(frozen=True)
class SpanDataset:
    """N questions in W ≥ N windows.

    tokens: of the windows. Their labels [W, 2] are the tokens at which the first answer starts and ends, 0 (the first
    token, which stands for "no answer here") twice where it is not whole in the window; their `p_mask` is 1 wherever no
    answer can be: not in the context, nor at token 0. rows: the questions. question: int64 [W], whose each window is.
    starts, ends: int32 [T], of each token the characters of its context (−1 outside; the end is exclusive).
    """

    tokens: TokenizedDataset
    rows: QuestionRows
    question: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """Of tokens and labels."""
        return self.tokens.fingerprint


def tokenize_questions(
    rows: QuestionRows,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    doc_stride: int,
    cache: bool = True,
    cache_dir: Path | None = None,
) -> SpanDataset:
    """Tokenises questions with their contexts, or finds that done before on disk, and places the answers.

    Windows are those that `transformers` makes with truncation="only_second" and return_overflowing_tokens.

    Args:
      rows: N questions.
      tokenizer: one that writes a pair as question and context, in this order, with a special token before.
      max_length: the most tokens of a window, special tokens included.
      doc_stride: tokens of the context that a window shares with the one before it.
      cache: keep the tokens on disk, in `cache_dir` (default: the user's cache).

    Raises:
      DataError: a question so long that a window has no room for more of its context than it shares.
    """

    def build() -> tuple[tuple[Ragged, ...], int]:
        return _encode_all(rows, tokenizer, max_length, doc_stride), 0

    key = _cache_key(rows, tokenizer, max_length, doc_stride) if cache else None
    pads = (tokenizer.pad_id, _OUTSIDE, _OUTSIDE, _OUTSIDE)
    (ids, starts, ends, owner), _, digest = token_cache.load_or_build(key, build, pad_ids=pads, cache_dir=cache_dir)
    question = owner.ids.astype(np.int64)
    p_mask = (starts.ids == _OUTSIDE).astype(np.int32)
    p_mask[ids.offsets[:-1]] = 0
    labels = _labels(ids.offsets, starts.ids, ends.ids, [rows.answers[index] for index in question])
    fingerprint = hashlib.sha256(digest.encode() + labels.tobytes()).hexdigest()
    tokens = TokenizedDataset(
        (ids,),
        labels,
        np.diff(ids.offsets).astype(np.int32),
        0,  # nothing is cut off
        max_length,
        fingerprint,
        {"p_mask": PerToken(p_mask, 1)},
    )
    return SpanDataset(tokens, rows, question, starts.ids, ends.ids)


def _labels(
    offsets: np.ndarray, starts: np.ndarray, ends: np.ndarray, answers: Sequence[tuple[Answer, ...]]
) -> np.ndarray:
    """int32 [W, 2]: the tokens that hold the first answer's first and last character; 0, 0 where one is missing."""
    labels = np.zeros((len(answers), 2), np.int32)
    for window, accepted in enumerate(answers):
        if not accepted:
            continue
        part = slice(offsets[window], offsets[window + 1])
        own = np.flatnonzero(starts[part] != _OUTSIDE)
        first, last = accepted[0].start, accepted[0].start + len(accepted[0].text)
        if not len(own) or starts[part][own[0]] > first or ends[part][own[-1]] < last:
            continue
        # the last token that starts at or before the answer, and the first that ends at or after it
        begin = own[np.searchsorted(starts[part][own], first, side="right") - 1]
        end = own[np.searchsorted(ends[part][own], last, side="left")]
        labels[window] = begin, end
    return labels


def _encode_all(rows: QuestionRows, tokenizer: Tokenizer, max_length: int, doc_stride: int) -> tuple[Ragged, ...]:
    """Windows' token ids; the first and the last character of each token; and each window's question."""
    questions = [question.lstrip() for question in rows.questions]
    parts: list[tuple[Ragged, ...]] = []
    problems: list[tuple[int, str]] = []
    for start in range(0, len(rows), _CHUNK):
        pairs = list(zip(questions[start : start + _CHUNK], rows.contexts[start : start + _CHUNK], strict=True))
        found: list[_Window] = []
        for place, encoding in enumerate(tokenizer.backend.encode_batch(pairs), start=start):
            windows = _windows(encoding, place, max_length, doc_stride)
            if isinstance(windows, str):
                problems.append((int(rows.row_numbers[place]), windows))
            else:
                found += windows
        if not problems:
            parts.append(_ragged(found, tokenizer))
    if problems:
        advice = "shorten them, or choose a larger data.max_length or a smaller data.doc_stride"
        raise bad_rows_error(rows.source, rows.unit, problems, len(rows), advice)
    return tuple(Ragged.concatenate(column) for column in zip(*parts, strict=True))


@dataclass(frozen=True)
class _Window:
    ids: list[int]
    types: list[int]
    starts: list[int]
    ends: list[int]
    question: int


def _windows(encoding: Any, question: int, max_length: int, doc_stride: int) -> list[_Window] | str:
    """A question's windows, or why there can be none."""
    where = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    first, last = (where[0], where[-1] + 1) if where else (len(encoding.ids), len(encoding.ids))
    room = max_length - (len(encoding.ids) - (last - first))
    if last - first > room and room <= doc_stride:
        return (
            f"the question leaves {max(room, 0)} of {max_length} tokens for its context, of which windows share "
            f"{doc_stride}"
        )
    if room < 1:
        return f"the question leaves no room for its context in {max_length} tokens"
    offsets = encoding.offsets
    starts = [offset[0] if first <= place < last else _OUTSIDE for place, offset in enumerate(offsets)]
    ends = [offset[1] if first <= place < last else _OUTSIDE for place, offset in enumerate(offsets)]
    found = []
    for begin in range(first, max(last, first + 1), max(room - doc_stride, 1)):
        end = min(begin + room, last)
        ids, types, firsts, lasts = (
            column[:first] + column[begin:end] + column[last:]
            for column in (encoding.ids, encoding.type_ids, starts, ends)
        )
        found.append(_Window(ids, types, firsts, lasts, question))
        if end == last:
            break
    return found


def _ragged(windows: Sequence[_Window], tokenizer: Tokenizer) -> tuple[Ragged, ...]:
    types = [each.types for each in windows] if tokenizer.has_types else None
    ids = Ragged.from_lists([each.ids for each in windows], types, pad_id=tokenizer.pad_id)
    others = ([each.starts for each in windows], [each.ends for each in windows], [[each.question] for each in windows])
    return (ids, *(Ragged.from_lists(column, None, pad_id=_OUTSIDE) for column in others))


def _cache_key(rows: QuestionRows, tokenizer: Tokenizer, max_length: int, doc_stride: int) -> str:
    """Content hash of all that decides the tokens, the library that makes them included."""
    import tokenizers as library

    settings = ["questions", library.__version__, tokenizer.fingerprint, max_length, doc_stride, len(rows)]
    return token_cache.content_key(settings, zip(rows.questions, rows.contexts, strict=True))
