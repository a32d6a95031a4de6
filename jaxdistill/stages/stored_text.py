"""Packed text and its teacher's top-k, kept together on disk: batches in any order, epoch after epoch.

Which tokens a token has seen depends on how documents are cut into rows. So the rows are packed once, in the order of
the documents, and it is rows that every epoch shuffles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxdistill.config.cache_checks import loss_temperatures
from jaxdistill.config.chain import ChainStage
from jaxdistill.data import text
from jaxdistill.data.text.encode import NO_LABEL
from jaxdistill.distill.bit_packing import packed_bytes
from jaxdistill.distill.shard_files import StoredRows
from jaxdistill.distill.teacher import OnlineTeacher
from jaxdistill.distill.top_k import TOP_K, TopKForm, top_k_error, top_k_of
from jaxdistill.errors import ConfigError, DataError
from jaxdistill.parallel import batch_sharding, place, whole_batches
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey
from jaxdistill.stages.teacher_files import TeacherFiles, cache_directory
from jaxdistill.typing import Batch

_READ_AHEAD = 4
_SHARD_BYTES = 2**26
_MEASURED_BATCHES = 8
_TEXT = ("input_ids", "labels", "segment_ids", "positions")


def check_lasts(split: text.TextSplit, stage: ChainStage, steps: int) -> None:
    """Raises DataError if the rows are used up before the last step, and may not be repeated."""
    available = -(-split.row_count() // stage.config.train.batch_size)
    if not stage.data.repeat and available < steps:
        raise DataError(
            f"{split.source}: the data is enough for {available} steps, but the run has {steps}; set data.repeat=true "
            f"or train.steps={available}, or give more data"
        )


def stored_form(loading: Loading, survey: Survey, classes: int) -> TopKForm:
    """What is kept of a stage's teacher: all that any stage with the same cache asks for.

    Raises:
        ConfigError: more tokens than the vocabulary has.
    """
    settings = loading.chain.run.disk_cache
    if settings.top_k > classes:
        raise ConfigError(
            f"disk_cache.top_k: {settings.top_k} tokens, but the vocabulary of stages.{survey.stage.name} has "
            f"{classes}; set disk_cache.top_k={classes} or less"
        )
    own = text_directory(loading, survey)
    others = [each for each in loading.surveys.values() if each.stage.teacher_cache == "disk"]
    stages = [survey.stage, *(each.stage for each in others if text_directory(loading, each) == own)]
    every = [terms for stage in stages for terms in stage.losses]
    temperatures = set(settings.temperatures).union(*(loss_temperatures(terms) for terms in every))
    return TopKForm(settings.top_k, classes, tuple(sorted(temperatures or {1.0})))


def text_directory(loading: Loading, survey: Survey) -> Any:
    """Where the cache of a stage's one teacher lies."""
    return cache_directory(loading.chain, survey.stage, survey.stage.teachers[0], max_length=survey.max_length)


def text_content(loading: Loading, survey: Survey, split: text.TextSplit, form: TopKForm) -> dict[str, Any]:
    """What the cache depends on besides the teacher's weights."""
    return {
        "kind": "top_k",
        "precision": loading.teacher_precision,
        "tokenizer": survey.tokenizers[0].fingerprint,
        "data": split.rows_fingerprint,
        "packing": split.packing,
        "sequence_length": split.sequence_length,
        "vocab_size": form.classes,
        "top_k": form.top_k,
        "temperatures": list(form.temperatures),
    }


def text_files(
    loading: Loading, survey: Survey, split: text.TextSplit, teacher: LoadedTeacher, form: TopKForm
) -> TeacherFiles:
    """The cache of a language model's top-k on the training rows of a stage."""
    mesh = loading.mesh
    batch_size = whole_batches(survey.stage.config.evaluate.batch_size, mesh)
    row_bytes = split.sequence_length * (form.token_bytes + 12)
    shard_rows = max(1, _SHARD_BYTES // (row_bytes * batch_size)) * batch_size
    online = OnlineTeacher(teacher.model)
    options: dict[str, Any] = {"teacher": online, "form": form, "mesh": mesh}

    def placed_params() -> Any:
        return online.prepare(place(teacher.params, loading.layout(teacher.model, teacher=True, like=teacher.params)))

    def compute(shards: int) -> Iterator[dict[str, np.ndarray]]:
        params = placed_params()
        pending: list[tuple[Batch, Any]] = []
        for batch in split.packed_rows(batch_size=batch_size, skip=shards * shard_rows):
            # nothing waits here: the device works through the batches while the host packs the next ones
            pending.append((batch, top_k_of(params, place(batch, batch_sharding(mesh)), **options)))
            if len(pending) * batch_size == shard_rows:
                yield _shard(pending)
                pending = []
        if pending:
            yield _shard(pending)

    def measure(rows: StoredRows) -> dict[str, Any]:
        params = placed_params()
        read = _Reader(rows, batch_size, (0, 1), split.pad_id)
        starts = sorted(set(np.linspace(0, max(0, len(rows) - batch_size), _MEASURED_BATCHES).astype(int).tolist()))
        totals: dict[str, Any] = {name: np.zeros(len(form.temperatures)) for name in ("kl", "rounding", "tail")}
        largest, counted = np.zeros(len(form.temperatures)), 0
        for start in starts:
            batch = read(0, np.arange(start, min(start + batch_size, len(rows))))
            found = jax.device_get(top_k_error(params, place(batch, batch_sharding(mesh)), **options))
            for name, values in found.items():
                totals[name] += values.sum((0, 1), dtype=np.float64)
            largest = np.maximum(largest, found["kl"].max((0, 1)))
            counted += int((batch["labels"] != NO_LABEL).sum())
        each = {name: value / max(counted, 1) for name, value in totals.items()}
        return {
            "bytes_per_token": rows.manifest.bytes / (len(rows) * split.sequence_length),
            "positions": counted,
            "kl_error": {
                str(temperature): {
                    "mean": float(each["kl"][place]),
                    "max": float(largest[place]),
                    "over_stored_and_rest": float(each["rounding"][place]),
                    "mass_of_rest": float(each["tail"][place]),
                }
                for place, temperature in enumerate(form.temperatures)
            },
        }

    content = text_content(loading, survey, split, form) | {"teacher": teacher.identity}
    directory, title = text_directory(loading, survey), f"{survey.stage.key}: top {form.top_k} of {teacher.name}"
    return TeacherFiles(title, directory, content, {"rows": shard_rows}, split.row_count(), compute, measure)


def _shard(pending: list[tuple[Batch, Any]]) -> dict[str, np.ndarray]:
    parts = [
        to_stored(batch, found, int((batch["example_id"] >= 0).sum()))
        for (batch, _), found in zip(pending, jax.device_get([found for _, found in pending]), strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def to_stored(batch: Batch, top_k: Batch, rows: int) -> dict[str, np.ndarray]:
    """The first `rows` of a batch, and of what is kept of its teacher, as they are written."""
    short = np.uint16 if batch["segment_ids"].shape[1] < 2**16 else np.int32
    kinds = {"input_ids": np.int32, "labels": np.int32, "segment_ids": short, "positions": short}
    stored = {name: np.asarray(batch[name])[:rows].astype(kinds[name]) for name in _TEXT}
    return (
        stored
        | {
            "top_ids": np.asarray(top_k["ids"])[:rows],
            "top_logits_bfloat16": np.asarray(top_k["logits"])[:rows].view(
                np.uint16
            ),  # as not every reader has the type
            "log_normalizer": np.asarray(top_k["log_normalizer"])[:rows],
        }
    )


@dataclass(frozen=True)
class StoredTextFeed:
    """Rows of a finished cache, shuffled anew in every epoch; `share` as in every feed.

    repeat: begin again after the last row; if not, the last batch holds filler rows. rows: None where only shapes are
    asked for.
    """

    rows: StoredRows | None
    split: text.TextSplit
    form: TopKForm
    share: tuple[int, int]
    repeat: bool

    def iterator(self, *, batch_size: int, seed: int, steps: int, positions: Sequence[Any] | None = None) -> Any:
        """Grain's; every part stands at the same batch."""
        import grain

        from jaxdistill.data.text.blocks import document_order

        assert self.rows is not None, "a cache that is only planned has no rows"
        order = document_order(len(self.rows), seed)
        if self.repeat:
            order = order.repeat()
        reader = _Reader(self.rows, batch_size, self.share, self.split.pad_id)
        batches = order.batch(batch_size, batch_fn=np.asarray).map_with_index(reader)
        iterator = iter(batches[:steps].to_iter_dataset(grain.ReadOptions(1, _READ_AHEAD)))
        if positions is not None:
            iterator.set_state(positions[0])
        return iterator

    def longest(self, batch_size: int) -> Batch:
        """All batches have one shape."""
        return blank_batch(self.split, self.form, batch_size)

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Real rows, and tokens that are not padding."""
        return int((batch["example_id"] >= 0).sum()), int((batch["segment_ids"] > 0).sum())


def blank_batch(split: text.TextSplit, form: TopKForm, batch_size: int) -> Batch:
    """A batch of filler rows with the shapes and dtypes that every batch has."""
    positions = (batch_size, split.sequence_length)
    stored = {
        "ids": np.zeros((*positions, packed_bytes(form.top_k, form.bits)), np.uint8),
        "logits": np.zeros((*positions, form.top_k), ml_dtypes.bfloat16),
        "log_normalizer": np.zeros((*positions, len(form.temperatures)), np.float32),
    }
    return {**split.filler_batch(batch_size=batch_size), TOP_K: stored}


@dataclass(frozen=True)
class _Reader:
    """Row numbers to this process's part of a batch; reading changes nothing."""

    rows: StoredRows
    batch_size: int
    share: tuple[int, int]
    pad_id: int

    def __call__(self, index: int, numbers: np.ndarray) -> Batch:
        part, count = self.share
        size = self.batch_size // count
        own = numbers[part * size : (part + 1) * size]
        # filler rows are read too, from anywhere, and then emptied: every batch has one shape
        found = self.rows[np.concatenate([own, np.zeros(size - len(own), own.dtype)])]
        real = np.arange(size) < len(own)
        text_arrays = {name: found[name].astype(np.int32) for name in _TEXT}
        if not real.all():
            for name, empty in (("input_ids", self.pad_id), ("labels", NO_LABEL), ("segment_ids", 0), ("positions", 0)):
                text_arrays[name][~real] = empty
        first = index * self.batch_size + part * size
        return {
            **text_arrays,
            "example_id": np.where(real, (first + np.arange(size)) % 2**31, -1).astype(np.int32),
            TOP_K: {
                "ids": found["top_ids"],
                "logits": found["top_logits_bfloat16"].view(ml_dtypes.bfloat16),
                "log_normalizer": found["log_normalizer"],
            },
        }
