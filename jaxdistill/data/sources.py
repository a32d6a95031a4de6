"""Where rows come from: a local file, a hub data set or a named asset."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxdistill.config.data_schema import DataConfig, SourceConfig, UnlabelledConfig
from jaxdistill.data import assets
from jaxdistill.data.labels import BadLabelError, parse_label
from jaxdistill.data.readers import Select, Table, arrow_table, class_names, is_unicode, read_table
from jaxdistill.data.rows import Rows, bad_rows_error
from jaxdistill.errors import DataError, ExternalError

T = TypeVar("T")

BAD_ROWS_ADVICE = "correct them, or leave them out (data.on_bad_row=skip; evaluate: --skip-bad-rows)"

_NO_COLUMN = "\0"
"""A name that no column of any file has."""


def load_rows(
    data: DataConfig, source: SourceConfig, *, base_dir: Path | None = None, require_labels: bool = True
) -> Rows:
    """Reads and checks the rows of one source.

    Args:
      data: the columns, the label names (if known) and what to do with bad rows.
      source: a path, a hub id or an asset.
      base_dir: what a relative path is relative to (default: the current directory).
      require_labels: with False a row, or the whole source, may lack its label (None).

    Returns:
      N ≥ 1 rows. Texts are as written; labels are integers or names, not yet class indices.

    Raises:
      DataError: nothing there, an unusable file, a missing column, or bad rows (with `on_bad_row: error`): missing or
        empty text, missing or impossible label, not UTF-8, malformed line, wrong number of columns.
      ExternalError: the hub or the disk cannot be read.
    """
    name = source_name(source)

    def select(found: Sequence[str]) -> tuple[str, ...]:
        """The text columns and, unless it may be absent and is, the label."""
        wanted = data.columns if data.label not in found and not require_labels else (*data.columns, data.label)
        return check_columns(wanted, found, name)

    with reading(name):
        table = open_table(source, name, base_dir, select)
        own_names = table.label_names.get(data.label)
        names = own_names or data.label_names  # integers that the source names are checked as such, in any order

        def check(record: Mapping[str, Any]) -> tuple[list[str], int | str | None]:
            parts = [check_text(record.get(column), column) for column in data.columns]
            return parts, _label(record.get(data.label), names, require_labels)

        kept, numbers, skipped = check_rows(table, check, data, source, expected="row")
    texts = tuple([parts[place] for parts, _ in kept] for place in range(len(data.columns)))
    labels = [label for _, label in kept]
    known = None if all(label is None for label in labels) else labels
    return Rows(texts, known, numbers, name, skipped, table.unit, own_names)


def load_texts(data: DataConfig, source: UnlabelledConfig, *, base_dir: Path | None = None) -> Rows:
    """As `load_rows`, without labels: a label column, if the source has one, is not read."""
    texts = replace(data, text=source.text or data.columns, label=_NO_COLUMN)
    return load_rows(texts, source, base_dir=base_dir, require_labels=False)


def source_name(source: SourceConfig) -> str:
    """What messages call a source."""
    if source.path is not None:
        return source.path
    place = source.hub if source.hub is not None else f"asset {source.asset}"
    return "/".join(part for part in (place, source.config, source.split) if part)


_COLUMN_KEYS = "data.text and data.label say which columns to read; evaluate: --text, --label"


def check_columns(
    wanted: Sequence[str], found: Sequence[str], source: str, *, keys: str = _COLUMN_KEYS
) -> tuple[str, ...]:
    """The wanted columns, each once; `keys` says what names them.

    Raises:
      DataError: one is not among those found.
    """
    for column in wanted:
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{source}: no column {column!r}, found {', '.join(map(repr, found))}{meant} ({keys})")
    return tuple(dict.fromkeys(wanted))


def open_table(source: SourceConfig, name: str, base_dir: Path | None, select: Select) -> Table:
    """The records of a path, a hub id or an asset; Raises as `load_rows`."""
    match source:
        case SourceConfig(path=str(path), hub=None, asset=None):
            return read_table((base_dir or Path()) / Path(path).expanduser(), name, select)
        case SourceConfig(path=None, hub=None, asset=str(asset)):
            return read_table(assets.split_path(asset, source.split), name, select)
        case SourceConfig(path=None, hub=str(), asset=None):
            return _open_hub(source, name, select)
    raise DataError(f"a data source needs exactly one of path, hub and asset, got {source}")


def _open_hub(source: SourceConfig, name: str, select: Select) -> Table:
    return hub_table(load_hub(source, name), name, select)


def load_hub(source: SourceConfig, name: str, *, streaming: bool = False) -> Any:
    """A split of a hub data set through `datasets`, which never runs code of the data set's own.

    Args:
      source: with `hub`.
      name: its name in messages.
      streaming: an `IterableDataset` of what is not downloaded first, instead of a `Dataset`.

    Raises:
      DataError: no split was named, or there is no such one.
      ExternalError: the hub cannot be reached or does not have it.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(
            str(source.hub), source.config, split=source.split, revision=source.revision, streaming=streaming
        )
    except ValueError as error:
        raise DataError(f"{name}: {first_line(error)}") from error
    except Exception as error:  # whatever the hub's client raises: offline, unknown id, gated, broken download
        raise ExternalError(
            f"{name}: the hub data set cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            "without a network, give a local file as `path`"
        ) from error
    if not isinstance(loaded, datasets.IterableDataset if streaming else datasets.Dataset):
        raise DataError(f"{name}: needs a split, one of {', '.join(map(str, loaded))}")
    return loaded


def hub_table(loaded: Any, name: str, select: Select) -> Table:
    """The records of a `Dataset`, which are mapped, not copied."""
    table: Any = loaded.with_format("arrow")[:]
    records = arrow_table(table.schema, iter(table.to_batches()), list(select(table.column_names)), name).records
    return Table("row", records, class_names(loaded.features.to_dict()))


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return next(iter(str(error).splitlines()), "")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Makes an ExternalError of what the disk says while a source is read."""
    try:
        yield
    except OSError as error:
        raise ExternalError(f"{name}: cannot be read: {error.strerror or error}") from error


def check_rows(
    table: Table, check: Callable[[Mapping[str, Any]], T], data: DataConfig, source: SourceConfig, *, expected: str
) -> tuple[list[T], np.ndarray, int]:
    """Reads and checks the records of a source, and keeps the good ones.

    Args:
      table: the source, opened.
      check: what is kept of a record; raises BadRowError or BadLabelError.
      data: what to do with bad rows.
      source: its limit and its name.
      expected: what one row is, in the message that there is none.

    Returns:
      What is kept of N ≥ 1 records, their numbers int64 [N], and how many bad ones were left out.

    Raises:
      DataError: bad rows (with `on_bad_row: error`), or not one good one.
    """
    name = source_name(source)
    kept: list[T] = []
    numbers: list[int] = []
    problems: list[tuple[int, str]] = []
    for number, record in itertools.islice(table.records, source.limit):
        try:
            if isinstance(record, str):
                raise BadRowError(record)
            kept.append(check(record))
            numbers.append(number)
        except (BadRowError, BadLabelError) as reason:
            problems.append((number, str(reason)))
    if problems and (data.on_bad_row == "error" or not kept):
        raise bad_rows_error(name, table.unit, problems, len(kept) + len(problems), BAD_ROWS_ADVICE)
    if not kept:
        raise DataError(f"{name}: the data set is empty; expected at least one {expected}")
    return kept, np.asarray(numbers, np.int64), len(problems)


class BadRowError(Exception):
    """Why a row cannot be used."""


def check_text(value: Any, column: str, *, may_be_empty: bool = False) -> str:
    """A row's text.

    Raises:
      BadRowError: it is missing, no string, not UTF-8, or blank where it may not be.
    """
    if isinstance(value, str):
        if not may_be_empty and not value.strip():
            raise BadRowError(f"empty text (column {column!r})")
        if not is_unicode(value):
            raise BadRowError(f"text is not UTF-8 (column {column!r})")
        return value
    if value is None or value != value:  # NaN differs from itself
        raise BadRowError(f"missing text (column {column!r})")
    kind = "number" if isinstance(value, int | float) else type(value).__name__
    raise BadRowError(f"text is a {kind}, expected a string (column {column!r})")


def _label(value: Any, names: Sequence[str] | None, required: bool) -> int | str | None:
    label = parse_label(value, names)
    if label is None and required:
        unlabelled = "label -1 means unlabelled, as in GLUE's test sets"
        raise BadRowError(unlabelled if str(value).strip() == "-1" else "missing label")
    if isinstance(label, str) and not is_unicode(label):
        raise BadRowError("label is not UTF-8")
    return label
