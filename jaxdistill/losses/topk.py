"""Forward KL from a stored teacher: its most probable classes, and the normaliser of all of them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Scalar

from jaxdistill.losses.divergences import forward_kl
from jaxdistill.losses.inputs import as_temperature, check_logits, check_where, neutral_where, zero_where


class TopK(NamedTuple):
    """What is stored of a teacher at each position."""

    ids: Int[Array, "*B K"]
    """Its most probable classes, all different."""
    logits: Float[Array, "*B K"]
    """Their raw logits, up to a constant of the position that `log_normalizer` has as well."""
    log_normalizer: Float[Array, "*B"]
    """log Σ exp(logit/T) over all classes, at one temperature."""


def top_k_forward_kl(
    student_logits: Float[Array, "*B V"],
    top_ids: Int[Array, "*B K"],
    top_logits: Float[Array, "*B K"],
    log_normalizer: Float[Array, "*B"],
    *,
    temperature: float | Scalar = 1.0,
    tail: Literal["bucket", "renormalise"] = "bucket",
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(teacher ‖ student) over the teacher's K stored classes, and what is left of both as one class more.

    It is the largest lower bound of the whole `forward_kl` that can be known from what is stored, and equal to it if
    K = V. With tail="renormalise" the K classes are taken for all there are, in both models, and the student is told
    nothing about the mass it puts elsewhere.

    Args:
        student_logits: [..., V] any float dtype.
        top_ids: [..., K] integer classes, all different, in any order. One outside [0, V) gives NaN.
        top_logits: [..., K] the teacher's raw logits of those classes, not divided by T; constants.
        log_normalizer: [...] log Σ exp(logit/T) over all of the teacher's classes, at this temperature: the tail's mass
            at one temperature cannot be had from another's. The tail is known no better than its rounding allows:
            to about 1e-7 in float32. Unused if tail="renormalise".
        temperature: positive number, or a scalar array (which may be traced); a constant.
        tail: "bucket" compares the mass of all other classes too; "renormalise" leaves them out.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; 0 where both models agree.

    Raises:
        ValueError: shapes or dtypes do not fit, `tail` is neither, or the temperature is not positive.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531
    """
    check_logits("student_logits", student_logits)
    check_top_k(TopK(top_ids, top_logits, log_normalizer), student_logits.shape[:-1], student_logits.shape[-1])
    check_where(where, student_logits.shape[:-1])
    if tail not in ("bucket", "renormalise"):
        raise ValueError(f'tail must be "bucket" or "renormalise", got {tail!r}')
    temperature = as_temperature(temperature)
    classes, stored = student_logits.shape[-1], top_ids.shape[-1]
    student, teacher = neutral_where(where, student_logits, stop_gradient(top_logits))
    ids = top_ids.astype(jnp.int32)
    if where is not None:
        ids = jnp.where(where[..., None], ids, jnp.arange(stored).reshape(*(1,) * where.ndim, stored))
    known = (ids >= 0) & (ids < classes)
    chosen = jnp.take_along_axis(student, jnp.where(known, ids, 0), axis=-1)
    chosen = jnp.where(known, chosen, jnp.nan)
    if tail == "bucket" and stored < classes:
        others = jnp.put_along_axis(student, ids, -jnp.inf, axis=-1, inplace=False, mode="drop")
        normalizer = stop_gradient(log_normalizer.astype(jnp.float32))
        if where is not None:
            normalizer = jnp.where(where, normalizer, math.log(stored + 1))
        chosen = jnp.concatenate([chosen, tempered_sum(others, temperature)], axis=-1)
        teacher = jnp.concatenate([teacher, stored_tail(teacher, normalizer[..., None], temperature)], axis=-1)
    return zero_where(where, forward_kl(chosen, teacher, temperature=temperature))


def tempered_sum(logits: Float[Array, "*B V"], temperature: Scalar) -> Float[Array, "*B 1"]:
    """T · log Σ exp(logits/T): the logit of all the classes together; −inf if none is possible."""
    top = stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    empty = top == -jnp.inf
    finite_top = jnp.where(empty, 0.0, top)
    total = jnp.sum(jnp.exp((logits - finite_top) / temperature), axis=-1, keepdims=True)
    return jnp.where(empty, -jnp.inf, finite_top + temperature * jnp.log(jnp.where(empty, 1.0, total)))


def stored_tail(
    top_logits: Float[Array, "*B K"], log_normalizer: Float[Array, "*B 1"], temperature: Scalar
) -> Float[Array, "*B 1"]:
    """The logit of all the classes that are not stored; −inf if they have no mass that float32 can tell."""
    top = jnp.max(top_logits, axis=-1, keepdims=True)
    stored = jnp.log(jnp.sum(jnp.exp((top_logits - top) / temperature), axis=-1, keepdims=True))
    # log(1 − e^x) of the tail's share, with x = log of the stored share, from the side where nothing cancels.
    log_share = jnp.minimum((top / temperature - log_normalizer) + stored, 0.0)
    empty = log_share == 0.0
    share = jnp.where(empty, 1.0, -jnp.expm1(log_share))
    return jnp.where(empty, -jnp.inf, temperature * (log_normalizer + jnp.log(share)))


def check_top_k(stored: TopK, shape: tuple[int, ...], classes: int) -> None:
    """Raises ValueError unless the stored arrays are of positions of that shape and of so many classes."""
    ids, logits, normalizer = stored
    check_logits("top_logits", logits)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"top_ids must be integer class indices, got {ids.dtype}")
    if ids.shape != logits.shape or ids.shape[:-1] != shape or ids.shape[-1] > classes:
        raise ValueError(
            f"top_ids and top_logits must have shape {(*shape, 'K')} with K up to {classes}, "
            f"got {ids.shape} and {logits.shape}"
        )
    if normalizer.shape != shape or not jnp.issubdtype(normalizer.dtype, jnp.floating):
        raise ValueError(
            f"log_normalizer must be floating point of shape {shape}, got {normalizer.dtype} of {normalizer.shape}"
        )
