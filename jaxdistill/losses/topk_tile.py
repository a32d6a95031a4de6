"""The divergence from a stored teacher on one tile of the student's logits, for the fused loss (see `tile.py`)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.divergences import forward_kl
from jaxdistill.losses.shards import exchange
from jaxdistill.losses.tile import Shard
from jaxdistill.losses.topk import TopK, check_top_k, stored_tail, tempered_sum


def checked_top_k(stored: TopK, classes: int, tokens: int, divergence: str) -> TopK:
    """Stored arrays, constants of so many tokens; raises ValueError if they or the divergence do not fit."""
    if divergence != "forward_kl":
        raise ValueError(f"divergence must be 'forward_kl' with top_k, got {divergence!r}")
    check_top_k(stored, (tokens,), classes)
    return stop_gradient(stored)


def neutral_top_k(stored: TopK, counted: Bool[Array, " N"]) -> TopK:
    """The stored arrays with tokens that do not count replaced by harmless ones: different classes, equally likely."""
    kept = stored.ids.shape[-1]
    return TopK(
        jnp.where(counted[:, None], stored.ids.astype(jnp.int32), jnp.arange(kept, dtype=jnp.int32)[None]),
        jnp.where(counted[:, None], stored.logits.astype(jnp.float32), 0.0),
        jnp.where(counted, stored.log_normalizer.astype(jnp.float32), math.log(kept + 1)),
    )


def top_k_terms(
    student: Float[Array, "C V"], stored: TopK, temperature: Scalar, shard: Shard
) -> tuple[Float[Array, "C 1"], Float[Array, "C V"]]:
    """As `top_k_forward_kl` with its bucket: T² times the divergence, and its derivative by the student's logits.

    Args:
        student: [C, V] float32, this device's classes; padding is −inf.
        stored: of these tokens: ids and logits [C, K], log-normaliser [C] at `temperature`.
        temperature: positive scalar.
        shard: which classes the columns are.
    """
    columns, kept = student.shape[-1], stored.ids.shape[-1]
    local = stored.ids - shard.start
    here = (local >= 0) & (local < columns) & shard.present
    # a place beyond the tile is dropped by a scatter; a negative one would count from its end
    place = jnp.where(here, local, columns)
    mine = jnp.where(here, jnp.take_along_axis(student, jnp.where(here, local, 0), axis=-1), -jnp.inf)
    others = jnp.put_along_axis(student, place, -jnp.inf, axis=-1, inplace=False, mode="drop")
    others = jnp.where(shard.present, others, -jnp.inf)
    (parts,) = exchange([jnp.concatenate([mine, tempered_sum(others, temperature)], axis=-1)], shard.axis_name)
    chosen = jnp.max(parts[..., :kept], axis=0)
    chosen = jnp.where((stored.ids >= 0) & (stored.ids < shard.vocab_size), chosen, jnp.nan)
    if kept >= shard.vocab_size:
        values, to_classes = _value_and_gradient(chosen, stored.logits, temperature)
        nothing = jnp.zeros_like(student)
        return values, jnp.put_along_axis(nothing, place, to_classes, axis=-1, inplace=False, mode="drop")
    tail = tempered_sum(parts[..., kept].T, temperature)
    teacher_tail = stored_tail(stored.logits, stored.log_normalizer[:, None], temperature)
    values, to_classes = _value_and_gradient(
        jnp.concatenate([chosen, tail], axis=-1),
        jnp.concatenate([stored.logits, teacher_tail], axis=-1),
        temperature,
    )
    finite_tail = jnp.where(tail == -jnp.inf, 0.0, tail)
    share = jnp.exp((others - finite_tail) / temperature)  # of each class in the student's tail
    gradient = to_classes[:, kept:] * share
    return values, jnp.put_along_axis(gradient, place, to_classes[:, :kept], axis=-1, inplace=False, mode="drop")


def _value_and_gradient(
    student: Float[Array, "C K"], teacher: Float[Array, "C K"], temperature: Scalar
) -> tuple[Float[Array, "C 1"], Float[Array, "C K"]]:
    values, pull_back = jax.vjp(lambda logits: forward_kl(logits, teacher, temperature=temperature), student)
    return values[:, None], pull_back(jnp.ones_like(values))[0]
