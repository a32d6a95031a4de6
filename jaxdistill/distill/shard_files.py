"""Rows of arrays on disk: written shard by shard, continued after a kill, checked against checksums, read by index.

A directory holds `manifest.json` and safetensors files of consecutive rows. safetensors is what models are kept in
already: plain arrays behind a JSON header, mapped into memory and read a row at a time, of which nothing is executed.
The manifest is replaced after every shard, so a directory is always whole up to the last one it names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.atomic import atomic_write_bytes, atomic_write_json, remove_leftovers
from jaxdistill.errors import CheckpointError

MANIFEST = "manifest.json"
_VERSION = 1
_HASHED_AT_A_TIME = 4


@dataclass(frozen=True)
class Shard:
    """One file: its rows and what it must hash to."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory holds.

    content: what the rows were computed from, by name; another value of any of them means other rows. layout: how they
    are divided, which only a continued writing must keep. measured: what was found out about them.
    """

    content: dict[str, Any]
    layout: dict[str, Any] = dataclasses.field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Written so far."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(shard.bytes for shard in self.shards)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory; None if there is none yet.

    Raises:
      CheckpointError: one that cannot be read.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("version") != _VERSION:
            raise ValueError("written by another version")
        return Manifest(**content | {"shards": tuple(Shard(**shard) for shard in content["shards"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {_advice(directory)}") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest.

    Raises:
      ExternalError: the disk is full or the directory is not writable.
    """
    atomic_write_json(directory / MANIFEST, {"version": _VERSION, **dataclasses.asdict(manifest)})


def start_over(directory: Path) -> None:
    """Delete what is kept in a directory, manifest first."""
    (directory / MANIFEST).unlink(missing_ok=True)
    for path in directory.glob("shard-*.safetensors"):
        path.unlink()
    if directory.is_dir():
        remove_leftovers(directory)


def append_shard(directory: Path, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> Manifest:
    """Write the next rows (arrays [rows, ...]) and the manifest that names them.

    Raises:
      ExternalError: the disk is full or the directory is not writable; what was written before stays whole.
    """
    from safetensors.numpy import save

    name = f"shard-{len(manifest.shards):05d}.safetensors"
    content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    atomic_write_bytes(directory / name, content)
    rows = len(next(iter(arrays.values())))
    shard = Shard(name, rows, len(content), hashlib.sha256(content).hexdigest())
    manifest = dataclasses.replace(manifest, shards=(*manifest.shards, shard))
    write_manifest(directory, manifest)
    return manifest


def check_content(
    directory: Path, manifest: Manifest, wanted: Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> None:
    """Refuse rows that were computed from something else.

    Args:
      directory: where they are.
      manifest: what they are.
      wanted: what they should have been computed from; keys that are left out are not compared.
      names: what messages call the keys.

    Raises:
      CheckpointError: naming everything that differs, and what to do.
    """
    changed = [
        f"{(names or {}).get(key, key)} {_short(manifest.content.get(key))} → {_short(value)}"
        for key, value in wanted.items()
        if not _agrees(key, manifest.content.get(key), value)
    ]
    if changed:
        raise CheckpointError(
            f"{directory / MANIFEST}: stale, computed from something else ({'; '.join(changed)}); {_advice(directory)}"
        )


def verify(directory: Path, manifest: Manifest, *, index: int = 0, count: int = 1) -> None:
    """Compare every `count`-th shard, from the `index`-th on, with its checksum, and the size of all.

    Raises:
      CheckpointError: naming the first file that is missing or damaged, and what to do.
    """
    for shard in manifest.shards:
        path = directory / shard.file
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {_advice(directory)}")
        if (size := path.stat().st_size) != shard.bytes:
            raise CheckpointError(f"{path}: damaged ({size} bytes instead of {shard.bytes}); {_advice(directory)}")
    own = manifest.shards[index::count]
    with ThreadPoolExecutor(_HASHED_AT_A_TIME) as pool:
        for shard, digest in zip(own, pool.map(lambda shard: _digest(directory / shard.file), own), strict=True):
            if digest != shard.sha256:
                path = directory / shard.file
                raise CheckpointError(f"{path}: damaged (it does not match its checksum); {_advice(directory)}")


class StoredRows:
    """The rows of a complete directory by their index; safe to read from several threads."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
        self._open = threading.local()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays [n, ...] of n ≥ 1 rows, in their order."""
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        found: dict[str, np.ndarray] = {}
        for place, (shard, row) in enumerate(zip(shards.tolist(), (rows - self._starts[shards]).tolist(), strict=True)):
            file = self._file(shard)
            for name in self._names:
                value = file.get_slice(name)[row : row + 1]
                if name not in found:
                    found[name] = np.empty((len(rows), *value.shape[1:]), value.dtype)
                found[name][place] = value[0]
        return found

    def whole(self) -> dict[str, np.ndarray]:
        """All rows of every array."""
        files = [self._file(shard) for shard in range(len(self.manifest.shards))]
        return {name: np.concatenate([file.get_tensor(name) for file in files]) for name in self._names}

    @cached_property
    def _names(self) -> list[str]:
        """Of the arrays, the same in every shard."""
        return list(self._file(0).keys())

    def _file(self, shard: int) -> Any:
        """The shard's file, mapped once in each thread."""
        from safetensors import safe_open

        files = self._open.__dict__.setdefault("files", {})
        if shard not in files:
            files[shard] = safe_open(self.directory / self.manifest.shards[shard].file, framework="np")
        return files[shard]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _agrees(key: str, stored: Any, wanted: Any) -> bool:
    """Equal; of temperatures, all that are wanted are there."""
    if key == "temperatures" and isinstance(stored, Sequence):
        return set(wanted) <= set(stored)
    return stored == wanted


def _short(value: Any) -> str:
    """A fingerprint's first characters; any other value whole."""
    if isinstance(value, str) and len(value) >= 40:
        return f"{value[:12]}…"
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _advice(directory: Path) -> str:
    return f"delete {directory}, or build it anew with `jaxdistill cache CONFIG --rebuild`"
