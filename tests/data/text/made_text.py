"""Documents of numbered words, their tokens, and packings written for clarity alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers, processors

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data import Tokenizer, load_tokenizer
from jaxdistill.data.text import TextSplit, open_split

PAD, END, BEGIN, FIRST_WORD = 0, 1, 2, 4
NO_LABEL = -100
Row = dict[str, list[int]]
Piece = tuple[list[int], list[int]]
"""Ids and labels."""


def make_tokenizer(directory: Path, *, template: str | None) -> Tokenizer:
    """Word number n is token FIRST_WORD + n."""
    vocab = {token: index for index, token in enumerate(["<pad>", "</s>", "<s>", "<unk>", *map(word, range(3000))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", BEGIN), ("</s>", END)]
        )
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(directory)


def word(number: int) -> str:
    return f"w{number}"


def made_texts(lengths: Sequence[int]) -> list[str]:
    """Documents of so many words, all words different."""
    numbers = iter(range(3000))
    return [" ".join(word(next(numbers)) for _ in range(length)) for length in lengths]


def tokens_of(text: str, *, begin: bool = False) -> list[int]:
    """Its ids with the end-of-sequence token, which the text's own tokens are followed by."""
    return [*([BEGIN] if begin else []), *(FIRST_WORD + int(part[1:]) for part in text.split()), END]


def shifted(ids: list[int], *, unlabelled: int = 0) -> Piece:
    labels = [*ids[1:], NO_LABEL]
    return ids, [NO_LABEL] * unlabelled + labels[unlabelled:]


def cut(pieces: Iterable[Piece], length: int) -> list[Piece]:
    return [
        (ids[start : start + length], labels[start : start + length])
        for ids, labels in pieces
        for start in range(0, len(ids), length)
    ]


def row_of(pieces: Sequence[Piece], length: int) -> Row:
    """A row that holds these pieces and then padding."""
    row: Row = {"input_ids": [], "segment_ids": [], "positions": [], "labels": []}
    for segment, (ids, labels) in enumerate(pieces, start=1):
        row["input_ids"] += ids
        row["labels"] += labels
        row["segment_ids"] += [segment] * len(ids)
        row["positions"] += range(len(ids))
    missing = length - len(row["input_ids"])
    filling = {"input_ids": PAD, "segment_ids": 0, "positions": 0, "labels": NO_LABEL}
    return {name: values + [filling[name]] * missing for name, values in row.items()}


def concat_rows(pieces: Sequence[Piece], length: int) -> list[Row]:
    rows: list[list[Piece]] = [[]]
    for ids, labels in pieces:
        rest = (ids, labels)
        while rest[0]:
            room = length - sum(len(part) for part, _ in rows[-1])
            if not room:
                rows.append([])
                continue
            rows[-1].append((rest[0][:room], rest[1][:room]))
            rest = (rest[0][room:], rest[1][room:])
    return [row_of(row, length) for row in rows]


def first_fit_rows(pieces: Sequence[Piece], length: int, bins: int) -> list[Row]:
    done: list[list[Piece]] = []
    filling: list[list[Piece]] = []
    for piece in cut(pieces, length):
        fits = [row for row in filling if sum(len(ids) for ids, _ in row) + len(piece[0]) <= length]
        if fits:
            fits[0].append(piece)
        elif len(filling) < bins:
            filling.append([piece])
        else:
            done, filling = done + filling, [[piece]]
    return [row_of(row, length) for row in done + filling]


def reference_rows(packing: str, pieces: Sequence[Piece], length: int, *, bins: int = 64) -> list[Row]:
    match packing:
        case "concat":
            return concat_rows(pieces, length)
        case "first_fit":
            return first_fit_rows(pieces, length, bins)
        case _:
            return [row_of([piece], length) for piece in cut(pieces, length)]


def rows_of(batches: Iterable[dict[str, np.ndarray]]) -> list[Row]:
    """The rows that are not fillers, in order; fillers are checked to hold nothing."""
    rows = []
    for batch in batches:
        for place, number in enumerate(batch["example_id"]):
            row = {name: batch[name][place].tolist() for name in ("input_ids", "segment_ids", "positions", "labels")}
            if number < 0:
                assert row == row_of([], len(row["input_ids"]))
            else:
                rows.append(row)
    return rows


def pieces_of(rows: Iterable[Row]) -> list[Piece]:
    """The segments of rows; their positions are checked."""
    pieces = []
    for row in rows:
        for segment in range(1, max(row["segment_ids"]) + 1):
            places = [place for place, found in enumerate(row["segment_ids"]) if found == segment]
            assert [row["positions"][place] for place in places] == list(range(len(places)))
            pieces.append(([row["input_ids"][place] for place in places], [row["labels"][place] for place in places]))
    return pieces


def documents_of(rows: Iterable[Row]) -> list[list[int]]:
    """The ids of the documents in rows of concatenated ones, which end where a label is missing; sorted."""
    documents: list[list[int]] = [[]]
    for ids, labels in pieces_of(rows):
        for token, label in zip(ids, labels, strict=True):
            documents[-1].append(token)
            if label == NO_LABEL:
                documents.append([])
    assert documents.pop() == []
    return sorted(documents)


def write_jsonl(path: Path, texts: Sequence[str], **more: Sequence[Any]) -> Path:
    columns = {"text": texts, **more}
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_one(path: Path, tokenizer: Tokenizer, cache: Path, *, length: int = 16, **settings: Any) -> TextSplit:
    """The whole of a file as one split."""
    data = DataConfig(task="causal_lm", test=SourceConfig(path=str(path)), **settings)
    split = open_split(data, "test", tokenizer, sequence_length=length, cache_dir=cache)
    assert split is not None
    return split
