"""Sentences of words as tokens, each word's tag on the first of its tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data import token_cache
from jaxdistill.data.labels import UNLABELLED
from jaxdistill.data.rows import bad_rows_error
from jaxdistill.data.tagged import TaggedRows
from jaxdistill.data.token_cache import Ragged
from jaxdistill.data.tokenize import PerToken, TokenizedDataset, Tokenizer

_CHUNK = 1024


@dataclass(frozen=True)
class WordDataset:
    """N sentences of W words in all, P of which have tokens.

    tokens: of the sentences, their labels [T] the tag of each word on its first token and −100 everywhere else.
    heads: int64 [P], the places of those first tokens among all tokens. words: int64 [P], which words they begin. The
    others were cut off, or are nothing but characters that the tokenizer drops. tags: int32 [W], −100 for none.
    offsets: int64 [N + 1], where each sentence's words begin.
    """

    tokens: TokenizedDataset
    heads: np.ndarray
    words: np.ndarray
    tags: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """Of tokens and tags."""
        return self.tokens.fingerprint


def tokenize_words(
    rows: TaggedRows,
    tokenizer: Tokenizer,
    tags: np.ndarray | None,
    *,
    max_length: int | None = None,
    truncate: bool = False,
    cache: bool = True,
    cache_dir: Path | None = None,
) -> WordDataset:
    """Tokenises sentences word by word, or finds that done before on disk, and aligns their tags.

    Args:
      rows: N sentences.
      tokenizer: whatever it does to words; one that joins words (SentencePiece) gets a blank before each.
      tags: int32 [W] from `encode_tags`; None: every word that has tokens is labelled 0, and none is known.
      max_length: the most tokens of a sentence, special tokens included (None: any number).
      truncate: cut longer sentences instead of refusing them; the words cut off have no tokens.
      cache: keep the tokens on disk, in `cache_dir` (default: the user's cache).

    Raises:
      DataError: a sentence is longer than `max_length` and `truncate` is false.
    """

    def build() -> tuple[tuple[Ragged, ...], int]:
        ids, index, cut = _encode_all(rows, tokenizer, max_length, truncate)
        return (ids, index), cut

    key = _cache_key(rows, tokenizer, max_length, truncate) if cache else None
    pads = (tokenizer.pad_id, -1)
    (ids, index), truncated, digest = token_cache.load_or_build(key, build, pad_ids=pads, cache_dir=cache_dir)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(words) for words in rows.words])])
    heads, words = _first_tokens(index, offsets)
    labels = np.full(len(ids.ids), UNLABELLED, np.int32)
    labels[heads] = 0 if tags is None else tags[words]
    own = np.full(offsets[-1], UNLABELLED, np.int32) if tags is None else tags
    fingerprint = hashlib.sha256(digest.encode() + labels.tobytes() + own.tobytes()).hexdigest()
    lengths = np.diff(ids.offsets).astype(np.int32)
    tokens = TokenizedDataset(
        (ids,),
        np.full(len(rows), UNLABELLED, np.int32),
        lengths,
        truncated,
        max_length,
        fingerprint,
        {"labels": PerToken(labels, UNLABELLED)},
    )
    return WordDataset(tokens, heads, words, own, offsets)


def _first_tokens(index: Ragged, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of words' first tokens, and which of all words those are; `index`: of each token's word, −1 for none.

    A word's tokens stand together; the same number in the next sentence is another word.
    """
    values = index.ids
    before = np.concatenate([np.full(1, -1, values.dtype), values[:-1]])
    before[index.offsets[:-1][np.diff(index.offsets) > 0]] = -1
    heads = np.flatnonzero((values >= 0) & (values != before))
    sentence = np.searchsorted(index.offsets, heads, side="right") - 1
    return heads.astype(np.int64), offsets[sentence] + values[heads]


def _encode_all(
    rows: TaggedRows, tokenizer: Tokenizer, max_length: int | None, truncate: bool
) -> tuple[Ragged, Ragged, int]:
    """Token ids, the word in its sentence that each belongs to (−1: a special token), and how many rows were cut."""
    backend = _for_words(tokenizer)
    ids, index = _encode(backend, rows.words, tokenizer.pad_id)
    lengths = np.diff(ids.offsets)
    long = np.flatnonzero(lengths > max_length) if max_length is not None else np.empty(0, np.int64)
    if not len(long) or max_length is None:
        return ids, index, 0
    if not truncate:
        problems = [(int(rows.row_numbers[row]), f"{lengths[row]} tokens") for row in long]
        advice = f"more than {max_length} tokens; cut them (data.truncate=true, or --truncate) or raise data.max_length"
        raise bad_rows_error(rows.source, rows.unit, problems, len(rows), advice)
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    cut_ids, cut_index = _encode(backend, [rows.words[row] for row in long], tokenizer.pad_id)
    return ids.replace(long, cut_ids), index.replace(long, cut_index), len(long)


def _encode(backend: Any, sentences: Sequence[list[str]], pad_id: int) -> tuple[Ragged, Ragged]:
    ids: list[Ragged] = []
    index: list[Ragged] = []
    for start in range(0, len(sentences), _CHUNK):
        encodings = backend.encode_batch(list(sentences[start : start + _CHUNK]), is_pretokenized=True)
        owners = [[-1 if word is None else word for word in encoding.word_ids] for encoding in encodings]
        ids.append(Ragged.from_lists([encoding.ids for encoding in encodings], None, pad_id=pad_id))
        index.append(Ragged.from_lists(owners, None, pad_id=-1))
    return Ragged.concatenate(ids), Ragged.concatenate(index)


def _for_words(tokenizer: Tokenizer) -> Any:
    """A copy of the library's tokenizer that takes a word for one in the midst of a text.

    Byte-level tokenizers (RoBERTa's) write the blank before a word into its first token, and would take every word for
    the beginning of a text; `transformers` asks for add_prefix_space=True there.
    """
    import tokenizers

    state = json.loads(tokenizer.backend.to_str())
    steps = [state.get("pre_tokenizer") or {}]
    steps += steps[0].get("pretokenizers") or []
    for step in steps:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def _cache_key(rows: TaggedRows, tokenizer: Tokenizer, max_length: int | None, truncate: bool) -> str:
    """Content hash of all that decides the tokens, the library that makes them included."""
    import tokenizers as library

    settings = ["words", library.__version__, tokenizer.fingerprint, max_length, truncate, len(rows)]
    return token_cache.content_key(settings, rows.words)
