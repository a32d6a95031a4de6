"""A model's logits over a whole data set, in example order: what teacher caches hold, and evaluation's input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill.data.stacking import groups, stack
from jaxdistill.distill.teacher import tokenizer_view
from jaxdistill.parallel import place, replicated, scan_first, stacked_sharding
from jaxdistill.typing import Array, Batch, Float, Int, Params, Scalar

_TOGETHER = 8
"""Batches that go to the device in one dispatch."""


@partial(jax.jit, static_argnames=("model", "mesh"))
def forward_logits(params: Params, batch: Batch, *, model: Any, mesh: Mesh | None = None) -> Float[Array, "B C"]:
    """The logits of one batch, float32, without dropout; compiled once per model and batch shape.

    With a mesh of several devices, over which parameters and batch are spread, they are whole on every one.
    """
    spread = mesh if mesh is not None and mesh.size > 1 else None
    with nullcontext() if spread is None else jax.sharding.use_abstract_mesh(spread.abstract_mesh):
        logits = model.apply(params, batch, ("logits",))["logits"].astype(jnp.float32)
    return logits if spread is None else jax.lax.with_sharding_constraint(logits, replicated(spread))


@partial(jax.jit, static_argnames=("model", "mesh"))
def forward_many(
    params: Params, batches: Batch, count: Scalar, *, model: Any, mesh: Mesh | None = None
) -> Float[Array, "K B C"]:
    """`forward_logits` of the first `count` of K batches of one shape, as one program; 0 for the others."""

    def forward(_: None, batch: Batch) -> tuple[None, Array]:
        return None, forward_logits(params, batch, model=model, mesh=mesh)

    return scan_first(forward, None, batches, count)[1]


def compute_logits(
    model: Any,
    params: Params,
    eval_batches: Iterable[Batch],
    n: int,
    mesh: Mesh | None = None,
    *,
    tokenizer_index: int = 0,
) -> Float[np.ndarray, "N C"]:
    """The logits of every example of a data set, in the order of example_id.

    Args:
      model: a `models.Model`.
      params: its parameters, placed on `mesh`'s devices.
      eval_batches: batches that together hold every example_id in [0, n) and filler rows (−1).
      n: number of examples.
      mesh: devices the batches are split over; default, the device of `params`.
      tokenizer_index: which distinct tokenizer of the data the model reads.

    Returns:
      float32 [N, C] on the host.

    Raises:
      ValueError: an example is missing from the batches, or out of range.
    """
    parts, ids = forward_batches(model, params, eval_batches, mesh, tokenizer_index=tokenizer_index)
    return in_example_order(parts, ids, n)


def forward_batches(
    model: Any, params: Params, batches: Iterable[Batch], mesh: Mesh | None = None, *, tokenizer_index: int = 0
) -> tuple[list[Float[Array, "K B C"]], list[Int[np.ndarray, "K B"]]]:
    """Logits and example_ids of every dispatch (−1: no row); arguments as of `compute_logits`."""
    parts, ids = [], []
    for group in groups(batches, _TOGETHER):
        ids.append(np.full((_TOGETHER, *group[0]["example_id"].shape), -1))
        ids[-1][: len(group)] = [batch["example_id"] for batch in group]
        views = stack([_model_inputs(tokenizer_view(batch, tokenizer_index)) for batch in group], _TOGETHER)
        # nothing waits here: the device works through the batches while the host prepares the next ones
        placed = views if mesh is None else place(views, stacked_sharding(mesh))
        parts.append(forward_many(params, placed, np.int32(len(group)), model=model, mesh=mesh))
    return parts, ids


def _model_inputs(batch: Batch) -> dict[str, Any]:
    """What a forward pass reads; the rest of the batch need not travel to the device."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def rows_and_ids(
    parts: Sequence[Array | np.ndarray], ids: Sequence[np.ndarray]
) -> tuple[Float[np.ndarray, "N C"], Int[np.ndarray, " N"]]:
    """Rows [..., C] of every part one below the other, and their example_ids, without fillers; waits for the device."""
    numbers = np.concatenate([part.reshape(-1) for part in ids])
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in jax.device_get(list(parts))])
    return rows[numbers >= 0], numbers[numbers >= 0]


def in_example_order(
    parts: Sequence[Array | np.ndarray], ids: Sequence[np.ndarray], n: int
) -> Float[np.ndarray, "N C"]:
    """Rows [..., C] of every part put in the order of their example_id, filler rows dropped; waits for the device.

    Raises:
      ValueError: an example is missing, or out of range.
    """
    if not parts:
        raise ValueError("no batches to compute logits for: the data set is empty")
    rows, row_ids = rows_and_ids(parts, ids)
    if row_ids.size and row_ids.max() >= n:
        raise ValueError(f"example_id {row_ids.max()} in the batches, but the data set has {n} examples")
    logits = np.empty((n, rows.shape[-1]), np.float32)
    found = np.zeros(n, bool)
    logits[row_ids], found[row_ids] = rows, True
    if not found.all():
        raise ValueError(f"{n - found.sum()} of {n} examples are in no batch, the first is {np.argmin(found)}")
    return logits
