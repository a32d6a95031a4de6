"""Files of the supported formats, read record by record with the number of the line or row each came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdistill.config.data_schema import DATA_FORMATS
from jaxdistill.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Record = tuple[int, Mapping[str, Any] | str]
"""Line or row number, and the values by column; or, in place of the values, what is wrong with the row."""

Select = Callable[[Sequence[str]], Sequence[str]]
"""Chooses the columns to read among those found, or raises DataError."""


@dataclass(frozen=True)
class Table:
    """A file being read. unit: what the numbers of `records` count; label_names: those of its ClassLabel columns."""

    unit: str
    records: Iterator[Record]
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path, source: str, select: Select) -> Table:
    """Opens a data file by its extension (in any case).

    Args:
      path: the file.
      source: its name in messages.
      select: given the names of the columns found, returns those to read.

    Raises:
      DataError: unknown extension, no such file, no usable header, a file that is not of its format, or `select`'s.
    """
    if path.is_dir():
        raise DataError(f"{source}: is a directory; give a file")
    match path.suffix.lower():
        case ".csv":
            reader = _read_csv
        case ".tsv":
            reader = _read_tsv
        case ".json":
            reader = _read_json
        case ".jsonl":
            reader = _read_jsonl
        case ".parquet":
            reader = _read_parquet
        case ".arrow":
            reader = _read_arrow
        case suffix:
            raise DataError(
                f"{source}: unknown extension {suffix or '(none)'!r}; supported are {', '.join(DATA_FORMATS)}"
            )
    if not path.exists():
        raise DataError(f"{source}: no such file (looked for {path.absolute()})")
    return reader(path, source, select)


def _read_csv(path: Path, source: str, select: Select) -> Table:
    return _read_delimited(path, source, select, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(path: Path, source: str, select: Select) -> Table:
    """As GLUE and most published sets write them: a quotation mark is a character like any other."""
    return _read_delimited(path, source, select, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(path: Path, source: str, select: Select, *, delimiter: str, quoting: Any) -> Table:
    # A text may be longer than the module's default limit of 131,072 characters; the limit is global to the module.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    # Bytes that are not UTF-8 become lone surrogates, which the row's own check finds; the lines stay countable.
    file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = _numbered(csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True), source)
    try:
        _, header = next(rows, (1, None))
        if header is None:
            raise DataError(f"{source}: empty file; expected a header line with the column names")
        columns = _header_columns(header, source)
        wanted = select(columns)
    except BaseException:
        file.close()
        raise
    places = [(name, columns.index(name)) for name in wanted]

    def records() -> Iterator[Record]:
        with file:
            for number, fields in rows:
                if isinstance(fields, str):
                    yield number, fields
                elif len(fields) != len(columns):
                    yield number, f"{len(fields)} columns where the header has {len(columns)}"
                else:
                    yield number, {name: fields[place] for name, place in places}

    return Table("line", records())


def _header_columns(header: list[str] | str, source: str) -> list[str]:
    if isinstance(header, str):
        raise DataError(f"{source}: the header line is unreadable: {header}")
    columns = [name.strip() for name in header]
    if any(not is_unicode(name) or "\x00" in name for name in columns):
        raise DataError(f"{source}: the header line is not UTF-8; save the file as UTF-8")
    doubles = sorted({name for name in columns if columns.count(name) > 1})
    if doubles:
        raise DataError(f"{source}: the header names {', '.join(map(repr, doubles))} more than once")
    return columns


def _numbered(reader: Any, source: str) -> Iterator[tuple[int, list[str] | str]]:
    """Rows with the line each starts on; blank lines are passed over, malformed rows come as what is wrong.

    Raises:
      DataError: a quotation mark that is never closed takes in several lines: nobody knows how many rows they were.
    """
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            never_ends = "unexpected end of data" in str(error)
            reason = "a quoted field never ends" if never_ends else str(error)
            span = f", lines {start} to {reader.line_num}" if reader.line_num > start else ""
            if never_ends and span:
                raise DataError(
                    f"{source}: line {start}: {reason} and takes in all lines to the last, {reader.line_num}; close "
                    'it, or write a quotation mark of the text itself as ""'
                ) from error
            yield start, f"malformed ({reason}{span})"
            continue
        if fields:
            yield start, fields


def _read_jsonl(path: Path, source: str, select: Select) -> Table:
    """Line by line: a file larger than the memory can be read."""

    def records() -> Iterator[Record]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_json_line(line)

    _check_objects("line", records(), source, select)
    return Table("line", records())


def parse_json_line(line: bytes) -> Mapping[str, Any] | str:
    """The object of one line, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except json.JSONDecodeError as error:
        return f"malformed JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        return "malformed JSON (nested too deeply)"
    return value if isinstance(value, dict) else f"{_json_kind(value)} where an object was expected"


def _read_json(path: Path, source: str, select: Select) -> Table:
    raw = path.read_bytes()
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{source}: line {line}: not UTF-8") from error
    except json.JSONDecodeError as error:
        hint = "; one object per line belongs in a .jsonl file" if error.msg == "Extra data" else ""
        raise DataError(f"{source}: line {error.lineno}, column {error.colno}: {error.msg}{hint}") from error
    except RecursionError as error:
        raise DataError(f"{source}: nested too deeply") from error
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise DataError(f'{source}: expected a list of objects, or {{"data": [...]}}')
    records: list[Record] = [
        (number, item if isinstance(item, dict) else f"{_json_kind(item)} where an object was expected")
        for number, item in enumerate(value, start=1)
    ]
    _check_objects("row", iter(records), source, select)
    return Table("row", iter(records))


def _check_objects(unit: str, records: Iterator[Record], source: str, select: Select) -> None:
    """Reads JSON objects until all columns were found: one is found when any object has it."""
    columns: dict[str, None] = {}
    problem: DataError | None = None
    first: Record | None = None
    total = 0
    for record in records:
        first, total = first or record, total + 1
        if not isinstance(record[1], dict) or record[1].keys() <= columns.keys():
            continue
        columns.update(dict.fromkeys(record[1]))
        try:
            select(list(columns))
            return
        except DataError as error:
            problem = error
    if problem is not None:
        raise problem
    if first is not None:
        raise DataError(f"{source}: not one object in {total} rows; the first, {unit} {first[0]}, is: {first[1]}")


def _json_kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _read_parquet(path: Path, source: str, select: Select) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{source}: not a readable parquet file: {error}") from error
    wanted = list(select(file.schema_arrow.names))
    return arrow_table(file.schema_arrow, file.iter_batches(columns=wanted), wanted, source)


def _read_arrow(path: Path, source: str, select: Select) -> Table:
    """Arrow IPC: the file format (Feather 2) or the stream format that `datasets` writes."""
    import pyarrow

    try:
        mapped = pyarrow.memory_map(str(path))
        if mapped.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(mapped)
            schema, batches = file.schema, (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            mapped.seek(0)
            stream = pyarrow.ipc.open_stream(mapped)
            schema, batches = stream.schema, iter(stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source}: not a readable arrow file: {error}") from error
    return arrow_table(schema, batches, list(select(schema.names)), source)


def arrow_table(
    schema: pyarrow.Schema, batches: Iterator[pyarrow.RecordBatch], wanted: Sequence[str], source: str
) -> Table:
    """A table from Arrow record batches; rows are counted from 1."""
    import pyarrow

    def records() -> Iterator[Record]:
        number = 0
        try:
            for batch in batches:
                columns = [_values(batch.column(name)) for name in wanted]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(wanted, values, strict=True))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{source}: damaged after row {number}: {error}") from error

    return Table("row", records(), _class_labels(schema))


def _values(column: pyarrow.Array) -> list[Any]:
    """A column's values in Python; strings that are not UTF-8 keep their bytes as lone surrogates."""
    import pyarrow

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()  # pyright: ignore[reportAttributeAccessIssue]
        raw = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _class_labels(schema: pyarrow.Schema) -> dict[str, tuple[str, ...]]:
    """From the metadata that `datasets` leaves in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return class_names(features)
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of the columns of ClassLabels, or of lists of them, among features as `datasets` writes them in JSON."""
    return {name: names for name, feature in features.items() if (names := _class_names(feature))}


def _class_names(feature: Any) -> tuple[str, ...]:
    """Those of one feature; of a list, of what it holds (`datasets` once wrote [feature])."""
    if isinstance(feature, list):
        return _class_names(feature[0]) if len(feature) == 1 else ()
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") == "ClassLabel":
        return tuple(feature.get("names") or ())
    return _class_names(feature.get("feature"))


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it holds none of the surrogates that stand for undecodable bytes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
