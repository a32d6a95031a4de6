"""Sentences of words with a tag each: read from CoNLL's files or from columns of lists, checked, tags made integers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.config.data_schema import TAGGED_FORMATS, DataConfig, SourceConfig
from jaxdistill.data.labels import UNLABELLED
from jaxdistill.data.readers import Record, Table, is_unicode
from jaxdistill.data.rows import bad_rows_error
from jaxdistill.data.sources import (
    BadRowError,
    check_columns,
    check_rows,
    open_table,
    reading,
    source_name,
)
from jaxdistill.data.tags import tag_set
from jaxdistill.errors import DataError

_DOCUMENT = "-DOCSTART-"
_COLUMNS = "data.tokens and data.tags say which columns to read; evaluate: --text, --label"


@dataclass(frozen=True)
class TaggedRows:
    """Sentences as read, before tags become integers and words become tokens.

    words: of each row. tags: one a word, names or integers, or None where they were not read. row_numbers, source,
    skipped, unit: as of `Rows`. tag_names: names the source itself gives its integers (a hub data set's ClassLabel).
    """

    words: list[list[str]]
    tags: list[list[int | str]] | None
    row_numbers: np.ndarray
    source: str
    skipped: int = 0
    unit: str = "row"
    tag_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.words)

    @property
    def texts(self) -> tuple[list[str], ...]:
        """Each row as one text: what tells rows apart."""
        return ([" ".join(words) for words in self.words],)

    def take(self, indices: Sequence[int] | np.ndarray) -> TaggedRows:
        """The rows at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            words=[self.words[index] for index in chosen],
            tags=None if self.tags is None else [self.tags[index] for index in chosen],
            row_numbers=self.row_numbers[chosen],
        )


def load_tagged(data: DataConfig, source: SourceConfig, *, base_dir: Path | None = None) -> TaggedRows:
    """Reads and checks the sentences of one source.

    A `.txt`, `.conll`, `.bio` or `.iob` file has a word a line, its tag last, TABs or spaces between, and a blank line
    after each sentence (`-DOCSTART-` lines are passed over); every other source has a column of word lists and one of
    tag lists.

    Args:
      data: the columns, and what to do with bad rows.
      source: a path or a hub id.
      base_dir: what a relative path is relative to (default: the current directory).

    Returns:
      N ≥ 1 rows.

    Raises:
      DataError: nothing there, an unusable file, a missing column, or bad rows (with `on_bad_row: error`): no words, as
        many tags as words are not there, words or tags that are none.
      ExternalError: the hub or the disk cannot be read.
    """
    name = source_name(source)

    def select(found: Sequence[str]) -> tuple[str, ...]:
        return check_columns((data.tokens, data.tags), found, name, keys=_COLUMNS)

    def check(record: Mapping[str, Any]) -> tuple[list[str], list[int | str]]:
        words = _words(record.get(data.tokens), data.tokens)
        return words, _tags(record.get(data.tags), data.tags, len(words))

    with reading(name):
        path = None if source.path is None else (base_dir or Path()) / Path(source.path).expanduser()
        if path is not None and path.suffix.lower() in TAGGED_FORMATS:
            table = _conll_table(path, name, data)
        else:
            table = open_table(source, name, base_dir, select)
        kept, numbers, skipped = check_rows(table, check, data, source, expected="sentence")
    words, tags = (list(column) for column in zip(*kept, strict=True))
    return TaggedRows(words, tags, numbers, name, skipped, table.unit, table.label_names.get(data.tags))


def _conll_table(path: Path, name: str, data: DataConfig) -> Table:
    """Sentences by the line each begins on."""
    if not path.exists():
        raise DataError(f"{name}: no such file (looked for {path.absolute()})")

    def records() -> Iterator[Record]:
        # bytes that are not UTF-8 become lone surrogates, which the row's own check finds
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for filled, lines in itertools.groupby(enumerate(file, start=1), key=lambda line: bool(line[1].strip())):
                if filled and (sentence := _sentence(list(lines), data)) is not None:
                    yield sentence

    return Table("line", records())


def _sentence(lines: list[tuple[int, str]], data: DataConfig) -> Record | None:
    """The words and tags of neighbouring lines; None where they only say that a document begins."""
    words, tags = [], []
    for number, line in lines:
        fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if fields[0].strip() == _DOCUMENT:
            continue
        if len(fields) < 2 or not fields[-1].strip():
            return lines[0][0], f"line {number} has a word without a tag; expected WORD and TAG, TAB or space between"
        words.append(fields[0].strip())
        tags.append(fields[-1].strip())
    return (lines[0][0], {data.tokens: words, data.tags: tags}) if words else None


def _words(value: Any, column: str) -> list[str]:
    if value is None:
        raise BadRowError(f"missing words (column {column!r})")
    if not isinstance(value, list):
        raise BadRowError(f"words are a {type(value).__name__}, expected a list of strings (column {column!r})")
    if not value:
        raise BadRowError(f"no words (column {column!r})")
    for place, word in enumerate(value, start=1):
        if not isinstance(word, str) or not word:
            what = "empty" if word == "" else "missing" if word is None else f"a {type(word).__name__}"
            raise BadRowError(f"word {place} is {what}, expected a string (column {column!r})")
        if not is_unicode(word):
            raise BadRowError(f"word {place} is not UTF-8 (column {column!r})")
    return value


def _tags(value: Any, column: str, count: int) -> list[int | str]:
    if not isinstance(value, list):
        got = "missing tags" if value is None else f"tags are a {type(value).__name__}, expected a list"
        raise BadRowError(f"{got} (column {column!r})")
    if len(value) != count:
        raise BadRowError(f"{len(value)} tags for {count} words")
    cleaned: list[int | str] = []
    for place, tag in enumerate(value, start=1):
        tag = tag.strip() if isinstance(tag, str) else tag
        if isinstance(tag, bool) or not isinstance(tag, int | str) or tag == "":
            what = "missing" if tag in (None, "") else f"a {type(tag).__name__}"
            raise BadRowError(f"tag {place} is {what}, expected a name or an integer (column {column!r})")
        if isinstance(tag, str) and not is_unicode(tag):
            raise BadRowError(f"tag {place} is not UTF-8 (column {column!r})")
        cleaned.append(tag)
    return cleaned


def found_tags(rows: TaggedRows) -> tuple[str, ...] | int:
    """The names that rows' tags have (see `tag_set`), or for integers without names how many those are.

    Raises:
      DataError: tags are partly names and partly integers, or there is none.
    """
    values = {tag for tags in rows.tags or () for tag in tags}
    integers = {tag for tag in values if isinstance(tag, int) and tag != UNLABELLED}
    names = {tag for tag in values if isinstance(tag, str)}
    if names and integers:
        raise DataError(
            f"{rows.source}: tags are partly integers ({min(integers)}) and partly names ({min(names)}); correct the "
            "wrong ones"
        )
    if not names and not integers:
        raise DataError(f"{rows.source}: no word has a tag")
    return tag_set(names) if names else max(integers) + 1


def encode_tags(rows: TaggedRows, names: Sequence[str]) -> np.ndarray:
    """The tags of all words, one row after the other, as places in `names`; int32 [W], −100 for none.

    Integers that the source itself names are read by these names.

    Raises:
      DataError: tags that are none of them, with file and row.
    """
    index: dict[int | str, int] = {name: place for place, name in enumerate(names)}
    own = rows.tag_names if rows.tag_names is not None else names
    if not set(own) <= set(names):
        raise DataError(
            f"{rows.source}: its tags are named {', '.join(own)}, but {', '.join(names)} were expected; leave "
            "data.label_names out, or give a model of these tags"
        )
    index |= {place: index[name] for place, name in enumerate(own)}
    index[UNLABELLED] = UNLABELLED
    problems = []
    encoded: list[int] = []
    for number, tags in zip(rows.row_numbers, rows.tags or (), strict=True):
        unknown = next((tag for tag in tags if tag not in index), None)
        if unknown is not None:
            problems.append((int(number), f"unknown tag {unknown!r}"))
        else:
            encoded += [index[tag] for tag in tags]
    if problems:
        advice = f"the tags are {', '.join(names)}; correct them, or list all tags in data.label_names"
        raise bad_rows_error(rows.source, rows.unit, problems, len(rows), advice)
    return np.asarray(encoded, np.int32)
