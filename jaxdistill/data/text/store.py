"""The documents of a split with random access: checked once, kept on disk by content, read through a memory map."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data.cache import default_cache_dir, new_directory
from jaxdistill.data.rows import bad_rows_error, text_share
from jaxdistill.data.sources import BAD_ROWS_ADVICE, reading
from jaxdistill.data.text.records import Checked, OpenSource, Parts, TextSource
from jaxdistill.errors import DataError

_VERSION = 1
_FILE = "documents.arrow"
_MANIFEST = "manifest.json"
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 2**24
_HELD_OUT = "held out"
_log = logging.getLogger(__name__)


class DocumentStore:
    """N documents by index. Pickled, it is the path of the file it maps, which the other process maps too.

    source: its name in messages. fingerprint: of everything that decides the documents and their order. skipped: bad
    rows left out. directory: where it is kept, or None when that could not be written and it is in memory.
    """

    def __init__(self, opened: OpenSource, skipped: int, directory: Path | None, table: Any) -> None:
        self.source, self.fingerprint = opened.source.name, opened.fingerprint
        self.skipped, self.directory = skipped, directory
        self._open(table)

    def _open(self, table: Any) -> None:
        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._columns = table.num_columns - 1
        self._shares = table.column("share")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        keys = ("source", "fingerprint", "skipped", "directory", *(() if self.directory else ("_batches",)))
        return {key: self.__dict__[key] for key in keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import pyarrow

        self.__dict__.update(state)
        self._open(_map(self.directory) if self.directory else pyarrow.Table.from_batches(self._batches))

    def parts(self, index: int) -> Parts:
        """The text of document `index`, or its prompt and completion."""
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[place], index - int(self._starts[place])
        return tuple(batch.column(column)[row].as_py() for column in range(self._columns))

    def shares(self) -> np.ndarray:
        """float64 [N]: the number in [0, 1) that a document's text alone decides."""
        return self._shares.to_numpy()


def open_store(source: TextSource, *, cache_dir: Path | None = None) -> DocumentStore:
    """Reads and checks all documents of a source, or finds that done before on disk.

    Args:
      source: of the documents.
      cache_dir: where documents are kept (default: the user's cache).

    Raises:
      DataError: nothing there, an unusable file, a missing column, no document, or bad rows (with `on_bad_row:
        error`): missing or empty text, not UTF-8, malformed line.
      ExternalError: the hub or the disk cannot be read.
    """
    with reading(source.name):
        opened = source.open()
        directory = (cache_dir or default_cache_dir()) / "documents" / f"v{_VERSION}-{opened.fingerprint[:40]}"
        if directory.exists():
            try:
                return _load(directory, opened)
            except (OSError, ValueError, KeyError) as error:
                _log.warning("document cache %s is damaged (%s); building it anew", directory, error)
        return _written(opened, directory) or _in_memory(opened)


def _written(opened: OpenSource, directory: Path) -> DocumentStore | None:
    """The store on disk, or None if it cannot be written there."""
    import pyarrow

    builder = _Builder(opened)
    try:
        with new_directory(directory) as work:
            with pyarrow.ipc.new_stream(work / _FILE, builder.schema) as writer:
                for batch in builder.batches():
                    writer.write_batch(batch)
            builder.check()
            digest = _digest(work / _FILE)
            (work / _MANIFEST).write_text(json.dumps({"skipped": builder.skipped, "sha256": digest}))
        return _load(directory, opened)
    except OSError as error:
        _log.warning("document cache %s cannot be written (%s); keeping the documents in memory", directory, error)
        return None


def _in_memory(opened: OpenSource) -> DocumentStore:
    import pyarrow

    builder = _Builder(opened)
    table = pyarrow.Table.from_batches(list(builder.batches()), builder.schema)
    builder.check()
    return DocumentStore(opened, builder.skipped, None, table)


def _load(directory: Path, opened: OpenSource) -> DocumentStore:
    manifest = json.loads((directory / _MANIFEST).read_text())
    if _digest(directory / _FILE) != manifest["sha256"]:
        raise ValueError(f"{_FILE} does not match its checksum")
    return DocumentStore(opened, int(manifest["skipped"]), directory, _map(directory))


def _map(directory: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(directory / _FILE))).read_all()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Builder:
    """Goes through the rows once: good ones become Arrow batches, bad ones are noted."""

    def __init__(self, opened: OpenSource) -> None:
        import pyarrow

        self._source = opened.source
        self._unit, self._rows = opened.read()
        text = [(str(place), pyarrow.large_string()) for place in range(len(self._source.data.columns))]
        self.schema = pyarrow.schema([*text, ("share", pyarrow.float64())])
        self._problems: list[tuple[int, str]] = []
        self._total = 0

    @property
    def skipped(self) -> int:
        return len(self._problems)

    def batches(self) -> Iterator[Any]:
        pending: list[Parts] = []
        size = 0
        for parts in self._good(self._rows):
            pending.append(parts)
            size += sum(map(len, parts))
            if len(pending) == _BATCH_DOCUMENTS or size > _BATCH_CHARACTERS:
                yield self._batch(pending)
                pending, size = [], 0
        if pending:
            yield self._batch(pending)

    def _good(self, rows: Iterator[Checked]) -> Iterator[Parts]:
        for number, parts in rows:
            self._total += 1
            if isinstance(parts, str):
                self._problems.append((number, parts))
            else:
                yield parts

    def _batch(self, documents: Sequence[Parts]) -> Any:
        import pyarrow

        shares = [held_out_share(parts) for parts in documents]
        columns = [*zip(*documents, strict=True), shares]
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        return pyarrow.record_batch(arrays, schema=self.schema)

    def check(self) -> None:
        """Raises DataError after all rows were read: bad ones that may not be skipped, or not one good one."""
        if self._problems and (self._source.data.on_bad_row == "error" or self.skipped == self._total):
            raise bad_rows_error(self._source.name, self._unit, self._problems, self._total, BAD_ROWS_ADVICE)
        if not self._total:
            raise DataError(f"{self._source.name}: the data set is empty; expected at least one document")


def held_out_share(parts: Parts) -> float:
    """The number in [0, 1) that decides whether a document is held out when validation is carved off."""
    return text_share(parts, salt=_HELD_OUT)


@dataclass(frozen=True)
class StoredDocuments:
    """Some documents of a store, as a picklable sequence. rows: their places in the store, ascending."""

    store: DocumentStore
    rows: np.ndarray | range

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Parts:
        return self.store.parts(int(self.rows[index]))
