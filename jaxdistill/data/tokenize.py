"""Texts to token ids: once per data set, tokenizer and maximum length, kept on disk by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdistill.data import token_cache
from jaxdistill.data.labels import encode_labels
from jaxdistill.data.rows import Rows, bad_rows_error
from jaxdistill.data.token_cache import Ragged
from jaxdistill.errors import DataError, ExternalError, ModelError

_CHUNK = 4096
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model")
_DESCRIPTIONS = ("config.json", "tokenizer_config.json")


class Tokenizer:
    """A fast tokenizer of `transformers`, as a pure function from texts to token ids.

    fingerprint: sha256 of everything that decides the ids (not of its padding and truncation settings). vocab_size:
    number of tokens, added ones included. max_id: the largest id it can give. pad_id: what padding is filled with.
    mask_token: as written in text, or None. has_types: whether its models are told the first text of a pair from the
    second. truncation_side: where texts that are too long are cut.
    """

    def __init__(self, wrapped: Any, name: str) -> None:
        import tokenizers

        backend = getattr(wrapped, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(f"{name}: needs a fast tokenizer (a tokenizer.json), got {type(wrapped).__name__}")
        self.name = name
        self.pad_id = int(wrapped.pad_token_id or 0)
        self.max_id = max(wrapped.get_vocab().values(), default=-1)
        self.vocab_size = len(wrapped)
        self.mask_token: str | None = wrapped.mask_token
        self._wrapped = wrapped
        # A copy: calls on the wrapped one change its padding and truncation, which must change nothing here.
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self.truncation_side: Literal["left", "right"] = wrapped.truncation_side
        self.has_types = "token_type_ids" in wrapped.model_input_names
        described = self._backend.to_str() + json.dumps([self.pad_id, self.has_types, self.truncation_side])
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    @property
    def backend(self) -> Any:
        """The library's own tokenizer, without padding and truncation; not to be changed."""
        return self._backend

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files as `transformers` loads them."""
        self._wrapped.save_pretrained(str(directory))

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text; None if there is none."""
        return self._wrapped.eos_token_id

    @property
    def mask_id(self) -> int | None:
        """Id of the token that hides another; None if there is none."""
        return self._wrapped.mask_token_id

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that are no text: separators, padding, the mask, what stands for the unknown; ascending."""
        return tuple(sorted({int(index) for index in self._wrapped.all_special_ids}))

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text; None if there is none."""
        return self._wrapped.bos_token_id

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._wrapped.decode(list(ids), skip_special_tokens=True)

    def tokens(self) -> dict[int, str]:
        """Every token by its id."""
        return {index: token for token, index in self._backend.get_vocab(with_added_tokens=True).items()}

    def words(self) -> list[str]:
        """The whole words of the vocabulary: letters alone, at least two, and one token when written alone; sorted."""
        texts = {self._backend.decode([index]).strip() for index in range(self.max_id + 1)}
        words = sorted(text for text in texts if len(text) > 1 and text.isalpha())
        special = self._backend.num_special_tokens_to_add(is_pair=False)
        lengths = np.diff(self.encode(words).offsets) if words else np.empty(0)
        return [word for word, length in zip(words, lengths, strict=True) if length == special + 1]

    def encode(self, texts: Sequence[str], pair: Sequence[str] | None = None) -> Ragged:
        """Token ids with the special tokens, not truncated.

        Args:
          texts: N texts.
          pair: N second texts, or None.
        """
        chunks = []
        for start in range(0, len(texts), _CHUNK):
            part: list[Any] = list(texts[start : start + _CHUNK])
            if pair is not None:
                part = list(zip(part, pair[start : start + _CHUNK], strict=True))
            encodings = self._backend.encode_batch_fast(part)
            chunks.append(_ragged(encodings, with_types=self.has_types and pair is not None, pad_id=self.pad_id))
        return Ragged.concatenate(chunks)

    def encode_truncated(self, texts: Sequence[str], pair: Sequence[str] | None, max_length: int) -> Ragged:
        """The same, with the longer of the two texts cut until the whole fits `max_length`."""
        self._backend.enable_truncation(max_length, strategy="longest_first", direction=self.truncation_side)
        try:
            return self.encode(texts, pair)
        finally:
            self._backend.no_truncation()


def _ragged(encodings: Sequence[Any], *, with_types: bool, pad_id: int) -> Ragged:
    lists = [encoding.ids for encoding in encodings]
    types = [encoding.type_ids for encoding in encodings] if with_types else None
    return Ragged.from_lists(lists, types, pad_id=pad_id)


def load_tokenizer(path_or_hub_id: str | Path, revision: str | None = None) -> Tokenizer:
    """Loads a fast tokenizer from a Hugging Face directory or the hub; runs no code from either.

    Raises:
      ModelError: no such directory, or no tokenizer in it.
      ExternalError: the hub cannot be reached or does not have it.
    """
    import transformers

    name = str(path_or_hub_id)
    directory = Path(name).expanduser()
    is_local = directory.exists()
    if is_local and not any((directory / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(f"{name}: no tokenizer there; expected one of {', '.join(_TOKENIZER_FILES)}")
    if not is_local and not _HUB_ID.fullmatch(name):
        raise ModelError(f"{name}: no such directory (looked for {directory.absolute()}), and not a hub id")
    place = str(directory) if is_local else name
    kind = transformers.BertTokenizer if is_local and _only_words(directory) else transformers.AutoTokenizer
    try:
        wrapped = kind.from_pretrained(
            place, revision=revision or "main", use_fast=True, local_files_only=is_local, trust_remote_code=False
        )
    except Exception as error:  # a broken file raises anything; the hub's client too
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if is_local:
            raise ModelError(f"{name}: the tokenizer cannot be loaded ({reason})") from error
        raise ExternalError(
            f"{name}: the tokenizer cannot be fetched from the hub ({reason}); offline, give a local directory"
        ) from error
    return Tokenizer(wrapped, name)


def _only_words(directory: Path) -> bool:
    """Whether it is a BERT directory from before tokenizer.json and model_type, which vocab.txt alone tells."""
    if {file for file in _TOKENIZER_FILES if (directory / file).is_file()} != {"vocab.txt"}:
        return False
    try:
        described = [
            json.loads((directory / file).read_text()) for file in _DESCRIPTIONS if (directory / file).exists()
        ]
        return not any("model_type" in part or "tokenizer_class" in part for part in described)
    except (OSError, ValueError, TypeError):  # whoever reads the rest says what is wrong with it
        return False


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, *, model: str) -> None:
    """Refuses a tokenizer that can give ids which the model has no embedding for.

    Raises:
      ModelError: naming both and the numbers.
    """
    if tokenizer.max_id >= vocab_size:
        raise ModelError(
            f"tokenizer {tokenizer.name} has ids up to {tokenizer.max_id}, but the embedding of {model} has only "
            f"{vocab_size} rows; use the model's own tokenizer, or a model with vocab_size >= {tokenizer.max_id + 1}"
        )


def check_same_tokens(one: Tokenizer, other: Tokenizer) -> None:
    """Refuses two tokenizers whose ids mean different tokens: equal sizes are not equal vocabularies.

    Raises:
      ModelError: naming the first id that differs.
    """
    mine, theirs = one.tokens(), other.tokens()
    for index in range(max(one.max_id, other.max_id) + 1):
        if mine.get(index) != theirs.get(index):
            raise ModelError(
                f"tokenizers {one.name} and {other.name} differ: token {index} is {_token(mine, index)} in the first "
                f"and {_token(theirs, index)} in the second; who is taught token by token needs its teachers' tokens"
            )


def _token(tokens: dict[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "none"


@dataclass(frozen=True)
class PerToken:
    """A number for each token of the first tokenizer, int32 like its ids; padding reads `fill`."""

    values: np.ndarray
    fill: int


@dataclass(frozen=True)
class TokenizedDataset:
    """N examples as token ids, one ragged array per tokenizer (memory-mapped where the cache could be written).

    labels: int32 [N], or [N, K] of K labels an example; −100 for none. lengths: int32 [N], the longest of the
    tokenizers' for each example. truncated: examples that were cut. fingerprint: sha256 over ids and labels.
    per_token: what batches hold besides, by name, one number a token (`labels` then stands in the others' place).
    """

    encodings: tuple[Ragged, ...]
    labels: np.ndarray
    lengths: np.ndarray
    truncated: int
    max_length: int | None
    fingerprint: str
    per_token: Mapping[str, PerToken] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: TokenizedDataset) -> TokenizedDataset:
        """The examples of both, tokenised alike and with one label each; the other's follow."""
        pairs = zip(self.encodings, other.encodings, strict=True)
        return TokenizedDataset(
            tuple(Ragged.concatenate(pair) for pair in pairs),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.lengths, other.lengths]),
            self.truncated + other.truncated,
            self.max_length,
            hashlib.sha256((self.fingerprint + other.fingerprint).encode()).hexdigest(),
        )


def tokenize(
    rows: Rows,
    tokenizers: Sequence[Tokenizer],
    *,
    max_length: int | None = None,
    truncate: bool = False,
    labels: np.ndarray | None = None,
    cache_dir: Path | None = None,
) -> TokenizedDataset:
    """Tokenises all rows with every tokenizer, or finds that done before on disk.

    Args:
      rows: N rows of one text or a pair.
      tokenizers: one or more different ones.
      max_length: the most tokens an example may have, special tokens included (None: any number).
      truncate: cut longer examples instead of refusing them.
      labels: int32 [N] from `encode_labels`; left out, the rows' own labels encoded without names.
      cache_dir: where tokens are kept (default: the user's cache).

    Raises:
      DataError: an example is longer than `max_length` and `truncate` is false.
    """
    if labels is None:
        labels, _ = encode_labels(rows)
    key = _cache_key(rows, tokenizers, max_length, truncate)

    def build() -> tuple[tuple[Ragged, ...], int]:
        built = [_encode_all(rows, tokenizer, max_length, truncate) for tokenizer in tokenizers]
        return tuple(ragged for ragged, _ in built), max(cut for _, cut in built)

    pad_ids = [tokenizer.pad_id for tokenizer in tokenizers]
    encodings, truncated, digest = token_cache.load_or_build(key, build, pad_ids=pad_ids, cache_dir=cache_dir)
    lengths = np.max([np.diff(encoding.offsets) for encoding in encodings], axis=0).astype(np.int32)
    labels = np.ascontiguousarray(labels, np.int32)
    fingerprint = hashlib.sha256(digest.encode() + labels.tobytes()).hexdigest()
    return TokenizedDataset(encodings, labels, lengths, truncated, max_length, fingerprint)


def _cache_key(rows: Rows, tokenizers: Sequence[Tokenizer], max_length: int | None, truncate: bool) -> str:
    """Content hash of all that decides the tokens, the library that makes them included."""
    import tokenizers as library

    settings = [library.__version__, [tokenizer.fingerprint for tokenizer in tokenizers], max_length, truncate]
    digest = hashlib.sha256(json.dumps([*settings, len(rows.texts), len(rows)]).encode())
    for column in rows.texts:
        for text in column:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _encode_all(rows: Rows, tokenizer: Tokenizer, max_length: int | None, truncate: bool) -> tuple[Ragged, int]:
    """All rows' tokens, and how many rows had to be cut."""
    first, pair = rows.texts[0], (rows.texts[1] if len(rows.texts) > 1 else None)
    ragged = tokenizer.encode(first, pair)
    lengths = np.diff(ragged.offsets)
    long = np.flatnonzero(lengths > max_length) if max_length is not None else np.empty(0, np.int64)
    if not len(long) or max_length is None:
        return ragged, 0
    if not truncate:
        problems = [(int(rows.row_numbers[row]), f"{lengths[row]} tokens") for row in long]
        advice = f"more than {max_length} tokens; cut them with data.truncate=true or raise data.max_length"
        raise bad_rows_error(rows.source, rows.unit, problems, len(rows), advice)
    try:
        cut = tokenizer.encode_truncated(
            [first[row] for row in long], None if pair is None else [pair[row] for row in long], max_length
        )
    except Exception as error:  # the library raises a bare Exception when not even the special tokens fit
        raise DataError(f"{rows.source}: cannot be cut to max_length {max_length}: {error}") from error
    return ragged.replace(long, cut), len(long)
