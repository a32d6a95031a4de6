"""Documents as they stand in a source, one after another: rows of a table, or lines and paragraphs of a text file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jaxdistill.config.data_schema import TEXT_FORMATS, DataConfig, PromptConfig, SourceConfig
from jaxdistill.data import assets
from jaxdistill.data.readers import Record
from jaxdistill.data.sources import (
    BadRowError,
    check_columns,
    check_text,
    hub_table,
    load_hub,
    open_table,
    source_name,
)
from jaxdistill.errors import DataError

Parts = tuple[str, ...]
"""A document's text, or its prompt and completion."""

Checked = tuple[int, Parts | str]
"""Line or row number, and the document; or, in place of it, what is wrong with the row."""


@dataclass(frozen=True)
class TextSource:
    """A source of documents; small and picklable, nothing is open.

    data: the columns, and what a document is in a text file. base_dir: what a relative path is relative to (default:
    the current directory).
    """

    data: DataConfig
    source: SourceConfig
    base_dir: Path | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return source_name(self.source)

    def path(self) -> Path | None:
        """Its file; an asset is fetched if need be. None: a hub data set.

        Raises:
          DataError: it is no file, or a text file where columns are asked for; unknown asset or split.
          ExternalError: the asset cannot be fetched.
        """
        if self.source.asset is not None:
            return assets.split_path(self.source.asset, self.source.split)
        if self.source.path is None:
            return None
        path = (self.base_dir or Path()) / Path(self.source.path).expanduser()
        if path.is_dir():
            raise DataError(f"{self.name}: is a directory; give a file")
        if not path.exists():
            raise DataError(f"{self.name}: no such file (looked for {path.absolute()})")
        if path.suffix.lower() in TEXT_FORMATS and isinstance(self.data.text, PromptConfig):
            raise DataError(f"{self.name}: a text file has no columns for a prompt and a completion; give a table")
        return path

    def open(self) -> OpenSource:
        """Finds out what is there: hashes a file, or loads a hub data set.

        Raises:
          DataError: nothing there. ExternalError: the hub cannot be read. OSError: the disk cannot.
        """
        path = self.path()
        if path is None:
            loaded = load_hub(self.source, self.name)
            return OpenSource(self, self._digest(loaded._fingerprint), loaded)
        with path.open("rb") as file:
            return OpenSource(self, self._digest(hashlib.file_digest(file, "sha256").hexdigest(), path.suffix.lower()))

    def fingerprint(self) -> str:
        """Of everything that decides the documents and their order; of a hub data set, of what is asked for alone.

        Raises:
          As `open`, but for a hub data set, of which nothing is loaded.
        """
        return self._digest() if self.path() is None else self.open().fingerprint

    def _digest(self, *content: str) -> str:
        source, data = self.source, self.data
        place = [] if source.hub is None else [source.hub, source.config, source.split, source.revision]
        return digest(content, place, source.limit, data.columns, data.sample_by, data.on_bad_row)


@dataclass(frozen=True)
class OpenSource:
    """A source that is there. fingerprint: of everything that decides the documents and their order."""

    source: TextSource
    fingerprint: str
    loaded: Any = None

    def read(self) -> tuple[str, Iterator[Checked]]:
        """What the numbers of rows count, and the rows: read, and checked, as they are asked for.

        Raises:
          DataError: an unusable file or a missing column. OSError: the disk cannot be read.
        """
        data, name = self.source.data, self.source.name

        def select(found: Sequence[str]) -> tuple[str, ...]:
            return check_columns(data.columns, found, name)

        path = self.source.path()
        if path is not None and path.suffix.lower() in TEXT_FORMATS:
            rows: Iterator[Record] = ((number, row) for number, row, _ in text_rows(path, data))
            unit = "line"
        else:
            source, base_dir = self.source.source, self.source.base_dir
            if self.loaded is None:
                table = open_table(source, name, base_dir, select)
            else:
                table = hub_table(self.loaded, name, select)
            unit, rows = table.unit, table.records
        return unit, (check_row(number, row, data) for number, row in islice(rows, self.source.source.limit))


def digest(*parts: Any) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_row(number: int, row: Any, data: DataConfig) -> Checked:
    """A row's texts, or why it cannot be used: only a prompt may be empty."""
    if isinstance(row, str):
        return number, row
    last = len(data.columns) - 1
    try:
        parts = [
            check_text(row.get(column), column, may_be_empty=place < last) for place, column in enumerate(data.columns)
        ]
        return number, tuple(parts)
    except BadRowError as reason:
        return number, str(reason)


def text_rows(path: Path, data: DataConfig, *, offset: int = 0, line: int = 1) -> Iterator[tuple[int, Any, list[int]]]:
    """The lines that are not blank, the paragraphs between blank lines, or the whole of a text file.

    Args:
      path: the file.
      data: what a document is (`sample_by`), and the column it is called.
      offset, line: where to begin: a byte, and the number of the line it is in.

    Yields:
      Number of the document's first line; the row, its text without the last line end (bytes that are not UTF-8 become
      lone surrogates); and the offset and line from which the next one is found.
    """
    kind: Literal["line", "paragraph", "document"] = data.sample_by
    pending: list[bytes] = []
    first = line
    with path.open("rb") as file:
        file.seek(offset)
        for content in file:
            is_blank = not content.strip()
            if pending and (kind == "line" or (is_blank and kind == "paragraph")):
                yield first, _text_row(pending, data), [offset, line]
                pending = []
            if not is_blank or (pending and kind == "document"):
                first = first if pending else line
                pending.append(content)
            offset, line = offset + len(content), line + 1
    if pending:
        yield first, _text_row(pending, data), [offset, line]


def _text_row(lines: Sequence[bytes], data: DataConfig) -> dict[str, str]:
    text = b"".join(lines).decode("utf-8", "surrogateescape")
    return {data.columns[0]: text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")}
