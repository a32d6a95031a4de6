"""Teacher caches on disk: where each stage's lies, when it fits, and how it is built, continued and opened."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxdistill.atomic import remove_leftovers
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import Chain, ChainStage, ResolvedTeacher
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.distill.shard_files import (
    Manifest,
    StoredRows,
    append_shard,
    check_content,
    read_manifest,
    start_over,
    verify,
    write_manifest,
)
from jaxdistill.parallel.hosts import on_every_host, on_lead_host
from jaxdistill.stages.directory import locked
from jaxdistill.stages.loading import Loading

_NAMES = {
    "teacher": "the teacher's weights",
    "data": "the training data",
    "tokenizer": "the tokenizer",
    "precision": "precision",
    "top_k": "disk_cache.top_k",
    "vocab_size": "the vocabulary's size",
}
_HOW_DATA_IS_READ = ("batching", "shuffle_window", "workers", "repeat", "streaming", "test")


@dataclass(frozen=True)
class TeacherFiles:
    """One teacher's cache for the training data of a stage.

    content: what it depends on; `teacher` (the weights) only where they are known already. layout: how rows are divided
    into shards. rows: of the whole. compute: the arrays of one shard after another, without so many first ones; every
    process calls it alike. measure: what is found out about a finished cache.
    """

    title: str
    directory: Path
    content: dict[str, Any]
    layout: dict[str, Any]
    rows: int
    compute: Callable[[int], Iterator[dict[str, np.ndarray]]]
    measure: Callable[[StoredRows], dict[str, Any]]


def cache_directory(chain: Chain, stage: ChainStage, teacher: ResolvedTeacher, *, max_length: int) -> Path:
    """Where the cache of a teacher for a stage's training data lies: one for all stages that ask for the same."""
    shared = chain.run.disk_cache.directory
    root = Path(shared).expanduser() if shared is not None else chain.directory / "teacher_cache"
    neutral = DataConfig()
    data = dataclasses.replace(stage.data, **{key: getattr(neutral, key) for key in _HOW_DATA_IS_READ})
    # another run's stage of the same name is another teacher
    whose = str(chain.directory.resolve()) if shared is not None and teacher.stage is not None else None
    asked = fingerprint([dataclasses.replace(teacher, weight=1.0), whose, data, max_length])
    label = teacher.stage or teacher.label.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:60]
    return root / f"{name or 'teacher'}-{asked[:10]}"


def check_cache(directory: Path, content: dict[str, Any]) -> None:
    """Refuse a cache that is there already and stale or damaged, before anything expensive.

    `content`: what is known of it yet.

    Raises:
        CheckpointError: as `open_cache`.
    """

    def check() -> None:
        manifest = read_manifest(directory)
        if manifest is not None:
            check_content(directory, manifest, content, names=_NAMES)
            verify(directory, manifest, index=jax.process_index(), count=jax.process_count())

    on_every_host(check)


def open_cache(files: TeacherFiles, console: Console, *, rebuild: bool = False) -> StoredRows:
    """The cache, built if it is not there and continued if its building was interrupted.

    Args:
        files: which.
        console: where progress is printed.
        rebuild: build it anew, whatever is there.

    Raises:
        CheckpointError: it is stale (computed from something else) or damaged, or another process is building it.
        ExternalError: the disk is full or not writable.
    """
    if rebuild or not on_lead_host(lambda: _is_complete(files)):
        _build(files, console, rebuild=rebuild)
    manifest = read_manifest(files.directory)
    assert manifest is not None
    own = {"index": jax.process_index(), "count": jax.process_count()}
    on_every_host(lambda: verify(files.directory, manifest, **own))
    return StoredRows(files.directory, manifest)


def opened_cache(files: TeacherFiles, loading: Loading) -> StoredRows:
    """`open_cache`, once for all stages, seeds and students that learn from the same."""
    if files.directory not in loading.caches:
        loading.caches[files.directory] = open_cache(files, loading.console)
    return loading.caches[files.directory]


def _is_complete(files: TeacherFiles) -> bool:
    manifest = read_manifest(files.directory)
    if manifest is None:
        return False
    check_content(files.directory, manifest, files.content, names=_NAMES)
    return manifest.complete


def _build(files: TeacherFiles, console: Console, *, rebuild: bool) -> None:
    directory, held = files.directory, ExitStack()

    def begin() -> tuple[int, int]:
        held.enter_context(locked(directory))
        manifest = None if rebuild else read_manifest(directory)
        if manifest is None or manifest.layout != files.layout:
            start_over(directory)
            manifest = Manifest(files.content, files.layout)
            write_manifest(directory, manifest)
        remove_leftovers(directory)
        return len(manifest.shards), manifest.rows

    with held:
        shards, done = on_lead_host(begin)
        console.print(f"{files.title}: {files.rows - done:,} of {files.rows:,} rows to compute, kept in {directory}")
        for arrays in files.compute(shards):
            on_lead_host(lambda arrays=arrays: _append(directory, arrays))
            done += len(next(iter(arrays.values())))
            console.print(f"{files.title}: {done:,} of {files.rows:,} rows")
        on_every_host(lambda: None)  # the last shard is there for all
        manifest = read_manifest(directory)
        assert manifest is not None
        measured = files.measure(StoredRows(directory, manifest))
        finished = dataclasses.replace(manifest, complete=True, measured=measured)
        on_lead_host(lambda: write_manifest(directory, finished))


def _append(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    manifest = read_manifest(directory)
    assert manifest is not None
    append_shard(directory, manifest, arrays)
