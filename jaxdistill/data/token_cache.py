"""Ragged token arrays, and the disk cache that keeps them by content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data.cache import default_cache_dir, new_directory

_VERSION = 1
_MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ragged:
    """N sequences in one array: sequence i is ids[offsets[i]:offsets[i + 1]].

    ids: int32 [T]. offsets: int64 [N + 1]. types: uint8 [T] token types, or None when all are 0. pad_id: what
    padding is filled with.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_lists(cls, ids: Sequence[list[int]], types: Sequence[list[int]] | None, *, pad_id: int) -> Ragged:
        """From one list of ids (and of types) per sequence."""
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(sequence) for sequence in ids], out=offsets[1:])
        flat_types = None if types is None else _flat(types, int(offsets[-1]), np.uint8)
        return cls(_flat(ids, int(offsets[-1]), np.int32), offsets, flat_types, pad_id)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """All sequences of one or more parts, which have types either all or none."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        types = [part.types for part in parts if part.types is not None]
        ids = np.concatenate([part.ids for part in parts])
        return cls(ids, offsets, np.concatenate(types) if types else None, parts[0].pad_id)

    def replace(self, rows: np.ndarray, other: Ragged) -> Ragged:
        """The same with sequences `rows` (ascending) replaced by those of `other`."""
        keep = np.ones(len(self.ids), bool)
        new_lengths = np.diff(self.offsets)
        for row, length in zip(rows, np.diff(other.offsets), strict=True):
            keep[self.offsets[row] + length : self.offsets[row + 1]] = False
            new_lengths[row] = length
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(new_lengths)])
        ids, types = self.ids[keep], None if self.types is None else self.types[keep]
        for place, row in enumerate(rows):
            source = slice(other.offsets[place], other.offsets[place + 1])
            ids[offsets[row] : offsets[row + 1]] = other.ids[source]
            if types is not None and other.types is not None:
                types[offsets[row] : offsets[row + 1]] = other.types[source]
        return Ragged(ids, offsets, types, self.pad_id)


def _flat(lists: Sequence[list[int]], total: int, dtype: Any) -> np.ndarray:
    return np.fromiter((value for values in lists for value in values), dtype, count=total)


def load_or_build(
    key: str | None,
    build: Callable[[], tuple[tuple[Ragged, ...], int]],
    *,
    pad_ids: Sequence[int],
    cache_dir: Path | None = None,
) -> tuple[tuple[Ragged, ...], int, str]:
    """Token arrays from the cache, or built and written there.

    A cache entry is checked against its checksums; a damaged one is built anew. Where the cache cannot be written the
    arrays stay in memory: the cache saves time, nothing depends on it.

    Args:
      key: content hash of all that decides the arrays; None: nothing is kept on disk.
      build: returns one ragged array per tokenizer, and the number of truncated examples.
      pad_ids: one per tokenizer.
      cache_dir: default: the user's cache.

    Returns:
      The arrays (memory-mapped), the number of truncated examples and a sha256 over the arrays' content ("" without a
      key).
    """
    if key is None:
        return *build(), ""
    directory = (cache_dir or default_cache_dir()) / "tokens" / f"v{_VERSION}-{key[:40]}"
    if directory.exists():
        try:
            return _load(directory, pad_ids)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("token cache %s is damaged (%s); building it anew", directory, error)
    encodings, truncated = build()
    arrays = _named_arrays(encodings)
    digests = {name: _digest(array) for name, array in arrays.items()}
    try:
        with new_directory(directory) as work:
            for name, array in arrays.items():
                np.save(work / f"{name}.npy", array, allow_pickle=False)
            manifest = {"arrays": digests, "tokenizers": len(encodings), "truncated": truncated}
            (work / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        return _load(directory, pad_ids)
    except (OSError, ValueError) as error:
        _log.warning("token cache %s cannot be written (%s); keeping the tokens in memory", directory, error)
        return encodings, truncated, _combined(digests)


def content_key(settings: Sequence[Any], rows: Iterable[Any]) -> str:
    """sha256 over JSON values: all that decides the arrays, and the rows they are made of."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _named_arrays(encodings: Sequence[Ragged]) -> dict[str, np.ndarray]:
    arrays = {}
    for place, encoding in enumerate(encodings):
        arrays[f"ids-{place}"], arrays[f"offsets-{place}"] = encoding.ids, encoding.offsets
        if encoding.types is not None and encoding.types.any():
            arrays[f"types-{place}"] = encoding.types
    return arrays


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.data)
    return digest.hexdigest()


def _combined(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _load(directory: Path, pad_ids: Sequence[int]) -> tuple[tuple[Ragged, ...], int, str]:
    manifest = json.loads((directory / _MANIFEST).read_text())
    arrays = {}
    for name, expected in manifest["arrays"].items():
        mapped = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        # A plain array over the map: indexing a np.memmap costs several times as much for small gathers.
        arrays[name] = np.asarray(mapped).view(np.ndarray)
        if _digest(arrays[name]) != expected:
            raise ValueError(f"{name}.npy does not match its checksum")
    if len(pad_ids) != manifest["tokenizers"]:
        raise ValueError("another number of tokenizers")
    encodings = tuple(
        Ragged(arrays[f"ids-{place}"], arrays[f"offsets-{place}"], arrays.get(f"types-{place}"), pad_id)
        for place, pad_id in enumerate(pad_ids)
    )
    return encodings, int(manifest["truncated"]), _combined(manifest["arrays"])
