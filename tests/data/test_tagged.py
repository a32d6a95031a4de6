"""Sentences with tags: CoNLL's files, columns of lists, ClassLabels, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data.sources import hub_table
from jaxdistill.data.tagged import encode_tags, found_tags, load_tagged
from jaxdistill.errors import DataError

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def load(path: Path, **keys: Any):
    return load_tagged(DataConfig(task="token_classification", **keys), SourceConfig(path=str(path)))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_conll(tmp_path: Path, separator: str) -> None:
    rows = load(write(tmp_path / "train.txt", CONLL.replace(" ", separator)))
    assert rows.words == [["EU", "rejects", "German"], ["Peter", "Blackburn"]]
    assert rows.tags == [["B-ORG", "O", "B-MISC"], ["B-PER", "I-PER"]]
    assert rows.row_numbers.tolist() == [3, 7]
    assert rows.unit == "line"
    names = found_tags(rows)
    assert names == ("O", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER")
    assert encode_tags(rows, names).tolist() == [3, 0, 1, 5, 6]


def test_lists_of_names_and_columns_of_other_names(tmp_path: Path) -> None:
    lines = [{"words": ["a", "b"], "ner": ["O", "B-X"]}, {"words": ["c"], "ner": ["O"]}]
    path = write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, lines)))
    rows = load(path, tokens="words", tags="ner")
    assert (rows.words, rows.tags) == ([["a", "b"], ["c"]], [["O", "B-X"], ["O"]])
    with pytest.raises(DataError, match=r"no column 'tokens'.*data\.tokens and data\.tags"):
        load(path)


def test_a_class_label_names_its_integers(tmp_path: Path) -> None:
    """In a data set of the hub, and in the parquet file that `datasets` makes of it."""
    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    table = datasets.Dataset.from_dict({"tokens": [["x", "y"]], "tags": [[1, 0]]}, features=features)
    assert hub_table(table, "hub", lambda found: found).label_names == {"tags": tuple(names)}
    table.to_parquet(str(tmp_path / "train.parquet"))
    rows = load(tmp_path / "train.parquet")
    assert rows.tag_names == tuple(names)
    assert encode_tags(rows, tuple(names)).tolist() == [1, 0]
    assert encode_tags(rows, ("B-PER", "I-PER", "O")).tolist() == [0, 2]  # by name, where a teacher has another order
    with pytest.raises(DataError, match="tags are named"):
        encode_tags(rows, ("O", "B-LOC", "I-LOC"))


def test_integers_without_names_stand_for_themselves(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "t.jsonl", '{"tokens": ["a", "b", "c"], "tags": [0, 2, -100]}'))
    assert found_tags(rows) == 3
    assert encode_tags(rows, ("O", "B-X", "I-X")).tolist() == [0, 2, -100]


BAD = [
    ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 words"),
    ({"tokens": None, "tags": ["O"]}, "missing words"),
    ({"tokens": [], "tags": []}, "no words"),
    ({"tokens": "a b", "tags": ["O"]}, "words are a str"),
    ({"tokens": ["a", ""], "tags": ["O", "O"]}, "word 2 is empty"),
    ({"tokens": ["a", None], "tags": ["O", "O"]}, "word 2 is missing"),
    ({"tokens": ["a"], "tags": None}, "missing tags"),
    ({"tokens": ["a"], "tags": [None]}, "tag 1 is missing"),
    ({"tokens": ["a"], "tags": [True]}, "tag 1 is a bool"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_errors_or_skipped(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"tokens": ["a"], "tags": ["O"]}
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, [good, row])))
    with pytest.raises(DataError, match=rf"t\.jsonl: 1 bad row of 2 \(line 2: {reason}"):
        load(path)
    rows = load(path, on_bad_row="skip")
    assert (len(rows), rows.skipped) == (1, 1)


def test_a_line_without_a_tag_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", "a O\n\nb O\nc\n")
    with pytest.raises(DataError, match=r"line 3: line 4 has a word without a tag"):
        load(path)
    assert load(path, on_bad_row="skip").words == [["a"]]


def test_unknown_tags_are_named_with_their_row(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "t.txt", "a O\n\nb B-LOG\n"))
    with pytest.raises(DataError, match=r"line 3: unknown tag 'B-LOG'.*data\.label_names"):
        encode_tags(rows, ("O", "B-LOC"))


def test_taking_rows(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "t.txt", CONLL)).take(np.asarray([1]))
    assert (rows.words, rows.tags, rows.texts) == (
        [["Peter", "Blackburn"]],
        [["B-PER", "I-PER"]],
        (["Peter Blackburn"],),
    )
