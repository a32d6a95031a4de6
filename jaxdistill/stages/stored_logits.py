"""A classifier's logits on a stage's training data, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdistill import data, losses
from jaxdistill.config.chain import ResolvedTeacher
from jaxdistill.distill.shard_files import StoredRows
from jaxdistill.distill.teacher_cache import forward_batches, in_example_order, rows_and_ids
from jaxdistill.parallel import replicate, whole_batches
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey
from jaxdistill.stages.teacher_files import TeacherFiles, cache_directory

_SHARD_ROWS = 2**16
_MEASURED_BATCHES = 4


def logits_content(loading: Loading, survey: Survey, dataset: data.TokenizedDataset, *, index: int) -> dict[str, Any]:
    """What the cache depends on besides the teacher's weights."""
    return {
        "kind": "dense",
        "precision": loading.teacher_precision,
        "tokenizer": survey.tokenizers[index].fingerprint,
        "data": dataset.fingerprint,
        "rows": len(dataset),
    }


def logits_files(
    loading: Loading,
    survey: Survey,
    dataset: data.TokenizedDataset,
    reference: ResolvedTeacher,
    teacher: LoadedTeacher,
    *,
    index: int,
) -> TeacherFiles:
    """The cache of a classifier's logits on the examples of a data set; `index`: of the tokenizer it reads."""
    mesh = loading.mesh
    batch_size = whole_batches(survey.stage.config.evaluate.batch_size, mesh)
    batches = data.eval_batches(dataset, batch_size=batch_size)
    shard_batches = max(1, _SHARD_ROWS // batch_size)

    def forward(some: Any) -> tuple[np.ndarray, np.ndarray]:
        params = replicate(teacher.params, mesh)
        parts, ids = forward_batches(teacher.model, params, some, mesh, tokenizer_index=index)
        rows, numbers = rows_and_ids(parts, ids)
        return numbers.astype(np.int32), rows

    def compute(shards: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(shards * shard_batches, len(batches), shard_batches):
            numbers, rows = forward(batches[start : start + shard_batches])
            yield {"example_id": numbers, "logits": rows}

    def measure(rows: StoredRows) -> dict[str, Any]:
        places = sorted(set(np.linspace(0, len(batches) - 1, _MEASURED_BATCHES).astype(int).tolist()))
        numbers, dense = forward([batches[place] for place in places])
        stored = stored_logits(rows, len(dataset))[numbers]
        error = np.asarray(losses.forward_kl(jnp.asarray(stored), jnp.asarray(dense)), np.float64)
        return {
            "bytes_per_example": rows.manifest.bytes / len(rows),
            "examples": len(numbers),
            "kl_error": {"1.0": {"mean": float(error.mean()), "max": float(error.max())}},
        }

    return TeacherFiles(
        f"{survey.stage.key}: logits of {teacher.name}",
        cache_directory(loading.chain, survey.stage, reference, max_length=survey.max_length),
        logits_content(loading, survey, dataset, index=index) | {"teacher": teacher.identity},
        {"batch_size": batch_size},
        len(dataset),
        compute,
        measure,
    )


def stored_logits(rows: StoredRows, n: int) -> np.ndarray:
    """float32 [N, C], in the order of example_id."""
    stored = rows.whole()
    return in_example_order([stored["logits"]], [stored["example_id"]], n)
