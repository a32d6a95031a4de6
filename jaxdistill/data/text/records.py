"""Documents as they stand in a source, one after another: rows of a table, or lines and paragraphs of a text file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from jaxdistill.config.data_schema import TEXT_FORMATS, DataConfig, PromptConfig, SourceConfig
from jaxdistill.data.readers import Record
from jaxdistill.data.sources import BadRowError, check_columns, check_text, open_table, source_name
from jaxdistill.errors import DataError

Parts = tuple[str, ...]
"""A document's text, or its prompt and completion."""

Checked = tuple[int, Parts | str]
"""Line or row number, and the document; or, in place of it, what is wrong with the row."""


@dataclass(frozen=True)
class Documents:
    """The rows of a source in their order. unit: what their numbers count; source: its name in messages."""

    unit: str
    source: str
    rows: Iterator[Checked]


def local_path(source: SourceConfig, base_dir: Path | None = None) -> Path | None:
    """The file of a source that has a `path`."""
    return None if source.path is None else (base_dir or Path()) / Path(source.path).expanduser()


def read_documents(data: DataConfig, source: SourceConfig, *, base_dir: Path | None = None) -> Documents:
    """Opens a source; its rows are read, and checked, as they are asked for.

    Raises:
      DataError: nothing there, an unusable file or a missing column.
      ExternalError: the hub cannot be read. OSError: the disk cannot.
    """
    name = source_name(source)
    path = local_path(source, base_dir)
    if path is not None and path.suffix.lower() in TEXT_FORMATS:
        if isinstance(data.text, PromptConfig):
            raise DataError(f"{name}: a text file has no columns for data.text's prompt and completion; give a table")
        if not path.is_file():
            what = "is a directory; give a file" if path.is_dir() else f"no such file (looked for {path.absolute()})"
            raise DataError(f"{name}: {what}")
        unit, records = "line", text_records(path, data.sample_by, data.columns[0])
    else:
        table = open_table(source, name, base_dir, lambda found: check_columns(data.columns, found, name))
        unit, records = table.unit, table.records
    return Documents(unit, name, checked(islice(records, source.limit), data))


def checked(records: Iterator[Record], data: DataConfig) -> Iterator[Checked]:
    """Each row's texts, or why it cannot be used: only a prompt may be empty."""
    last = len(data.columns) - 1
    for number, record in records:
        try:
            if isinstance(record, str):
                raise BadRowError(record)
            yield (
                number,
                tuple(
                    check_text(record.get(column), column, may_be_empty=place < last)
                    for place, column in enumerate(data.columns)
                ),
            )
        except BadRowError as reason:
            yield number, str(reason)


def text_records(
    path: Path, sample_by: Literal["line", "paragraph", "document"], column: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines that are not blank, the paragraphs between blank lines, or the whole of a text file.

    Yields:
      Number of the first line, and the text under `column`, without its last line end; bytes that are not UTF-8 become
      lone surrogates.
    """
    if sample_by == "document":
        text = _decoded([path.read_bytes()])
        yield from [(1, {column: text})] if text.strip() else []
        return
    lines: list[bytes] = []
    start = 1
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            is_blank = not line.strip()
            if lines and (is_blank or sample_by == "line"):
                yield start, {column: _decoded(lines)}
                lines = []
            if not is_blank:
                start = start if lines else number
                lines.append(line)
    if lines:
        yield start, {column: _decoded(lines)}


def _decoded(lines: Sequence[bytes]) -> str:
    text = b"".join(lines).decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
