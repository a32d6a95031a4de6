"""The rows of a source from any position on, without reading what is before it where that can be helped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jaxdistill.config.data_schema import TEXT_FORMATS
from jaxdistill.data.readers import parse_json_line
from jaxdistill.data.sources import check_columns, first_line, load_hub, open_table
from jaxdistill.data.text.records import TextSource, text_rows
from jaxdistill.errors import ExternalError, JaxdistillError

Positioned = tuple[int, Any, Any]
"""Line or row number; the values by column, or what is wrong with the row; and the position after it, as JSON."""


class StreamRows:
    """Rows one by one, and where they stand.

    unit: what their numbers count. is_divided: they are one process's already. position: after the last row given.
    """

    def __init__(self, rows: Iterator[Positioned], unit: str, position: Any, *, is_divided: bool = False) -> None:
        self._rows, self.unit, self.is_divided, self._position = rows, unit, is_divided, position

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        number, row, self._position = next(self._rows)
        return number, row

    def first(self, count: int) -> StreamRows:
        """The same without the rows after `count`."""
        self._rows = islice(self._rows, count)
        return self

    def position(self) -> Any:
        """JSON from which `open_rows` goes on."""
        return self._position() if callable(self._position) else self._position


def open_rows(source: TextSource, *, done: int, position: Any, index: int, count: int) -> StreamRows:
    """Opens a source at a position in it.

    Text and JSON lines are entered at their byte, a hub data set at its own state; other files are read, and passed
    over, from their beginning.

    Args:
      source: of the documents.
      done: rows before the position.
      position: as `StreamRows.position` gave it; None: the beginning.
      index, count: of the processes that will divide the rows. A hub data set is divided by itself, if possible such
        that a process reads its own files alone.

    Raises:
      DataError: nothing there, an unusable file or a missing column.
      ExternalError: the hub cannot be read.
    """
    path, limit = source.path(), source.source.limit
    left = None if limit is None else max(limit - done, 0)
    if path is None:
        rows = _hub_rows(source, done, position, (index, count) if limit is None else (0, 1))
    elif path.suffix.lower() in TEXT_FORMATS:
        offset, line = position or (0, 1)
        rows = StreamRows(text_rows(path, source.data, offset=offset, line=line), "line", position)
    else:
        rows = _table_rows(source, path, done, position)
    return rows if left is None else rows.first(left)


def _table_rows(source: TextSource, path: Path, done: int, position: Any) -> StreamRows:
    def select(found: Any) -> tuple[str, ...]:
        return check_columns(source.data.columns, found, source.name)

    table = open_table(source.source, source.name, source.base_dir, select)
    if path.suffix.lower() == ".jsonl":
        offset, line = position or (0, 1)
        return StreamRows(_json_rows(path, offset, line), "line", position)
    return StreamRows(((number, row, None) for number, row in islice(table.records, done, None)), table.unit, None)


def _json_rows(path: Path, offset: int, line: int) -> Iterator[Positioned]:
    with path.open("rb") as file:
        file.seek(offset)
        for content in file:
            offset, line = offset + len(content), line + 1
            if content.strip():
                yield line - 1, parse_json_line(content), [offset, line]


def _hub_rows(source: TextSource, done: int, position: Any, process: tuple[int, int]) -> StreamRows:
    """A hub data set that is not downloaded first; `datasets` keeps its own position and divides it by itself."""
    import datasets.distributed

    loaded = load_hub(source.source, source.name, streaming=True)
    if loaded.column_names is not None:
        loaded = loaded.select_columns(list(check_columns(source.data.columns, loaded.column_names, source.name)))
    if process[1] > 1:
        loaded = datasets.distributed.split_dataset_by_node(loaded, *process)
    if position is not None:
        loaded.load_state_dict(position)

    def rows() -> Iterator[Positioned]:
        try:
            for number, row in enumerate(loaded, start=done + 1):
                yield number, row, loaded.state_dict
        except JaxdistillError:
            raise
        except Exception as error:  # whatever the hub's client raises in the middle of a file
            raise ExternalError(
                f"{source.name}: the hub data set cannot be read on ({type(error).__name__}: {first_line(error)}); "
                "the same command continues from the last checkpoint"
            ) from error

    return StreamRows(rows(), "row", position, is_divided=process[1] > 1)
