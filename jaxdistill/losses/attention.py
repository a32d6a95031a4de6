"""Losses between a student's and a teacher's attention: scores, distributions, and relations between tokens.

A token that `where` excludes is neither a query nor a key: it counts nowhere, whatever it holds. The result has one
value per query; means over queries are left to `masked_mean`, as everywhere.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jaxdistill.losses.divergences import forward_kl
from jaxdistill.losses.inputs import check_where, zero_where

# Models mask a key by −inf or by a number like it; no score that means anything is near either.
_LOWEST_SCORE = -1e30


def attention_mse(
    student_scores: Float[Array, "*B N S S"],
    teacher_scores: Float[Array, "*B N S S"],
    *,
    where: Bool[Array, "*B S"] | None = None,
) -> Float[Array, "*B S"]:
    """Mean over heads and attended keys of (student − teacher)², of the scores before their softmax.

    Args:
        student_scores: [..., N, S, S]: heads, queries, keys. A score of −inf (or below −1e30, which is how masks are
            added) says that the query does not attend to the key, as in a causal mask: where both say so, it is no key
            of that query and is not part of the mean; where one does, the result is +inf.
        teacher_scores: [..., N, S, S], with as many heads; a constant.
        where: [..., S] bool, True = a token that counts; None counts every token.

    Returns:
        [..., S] float32, non-negative; one for each query.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Jiao et al., TinyBERT (equation 7), https://arxiv.org/abs/1909.10351
    """
    student, teacher = _attended(student_scores, teacher_scores, where)
    absent = (student == -jnp.inf) & (teacher == -jnp.inf)
    difference = jnp.where(absent, 0.0, student) - jnp.where(absent, 0.0, teacher)
    scores = jnp.sum(~absent, axis=(-3, -1), dtype=jnp.int32)
    return zero_where(where, jnp.sum(difference**2, axis=(-3, -1)) / jnp.maximum(scores, 1).astype(jnp.float32))


def attention_kl(
    student_scores: Float[Array, "*B N S S"],
    teacher_scores: Float[Array, "*B N S S"],
    *,
    where: Bool[Array, "*B S"] | None = None,
) -> Float[Array, "*B S"]:
    """Mean over heads of KL(teacher ‖ student) between the distributions softmax(scores) over keys.

    Args:
        student_scores: [..., N, S, S]: heads, queries, keys, before the softmax; the logarithms of attention
            probabilities do as well. A score of −inf (or below −1e30) says that the query does not attend to the key.
        teacher_scores: [..., N, S, S], with as many heads; a constant.
        where: [..., S] bool, True = a token that counts; None counts every token.

    Returns:
        [..., S] float32, non-negative, one for each query; +inf where the teacher attends to what the student cannot.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Wang et al., MiniLM (equation 5), https://arxiv.org/abs/2002.10957
        Sun et al., MobileBERT (attention transfer), https://arxiv.org/abs/2004.02984
    """
    student, teacher = _attended(student_scores, teacher_scores, where)
    return _mean_kl(student, teacher, where)


def relation_kl(
    student_vectors: Float[Array, "*B S D"],
    teacher_vectors: Float[Array, "*B S E"],
    *,
    num_relation_heads: int,
    attended: Bool[Array, "*B S S"] | None = None,
    where: Bool[Array, "*B S"] | None = None,
) -> Float[Array, "*B S"]:
    """Mean over relation heads of KL(teacher ‖ student) between softmax(X·Xᵀ/√d), which relate a layer's tokens.

    X are a layer's queries, keys or values, all of its attention heads joined and then split anew into relation heads
    of width d, so that the two models may differ in width and in their own heads. MiniLM's value relations keep the
    teacher's number of heads; its successor's Q-Q, K-K and V-V relations take more of them.

    Args:
        student_vectors: [..., S, D]; D = number of attention heads times head size.
        teacher_vectors: [..., S, E] of any width; a constant.
        num_relation_heads: into how many heads both are split; divides D and E.
        attended: [..., S, S] bool, which keys (last axis) a query relates to: a causal mask, or packed documents apart.
            None relates it to all that `where` counts.
        where: [..., S] bool, True = a token that counts; None counts every token.

    Returns:
        [..., S] float32, non-negative; one for each token.

    Raises:
        ValueError: shapes other than the widths differ, a width cannot be split, or a dtype is wrong.

    References:
        Wang et al., MiniLM (equation 7), https://arxiv.org/abs/2002.10957
        Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, https://arxiv.org/abs/2012.15828
    """
    shape = student_vectors.shape[:-1]
    if len(shape) < 1 or teacher_vectors.shape[:-1] != shape:
        raise ValueError(
            "student_vectors and teacher_vectors must be [..., tokens, width], alike in all but the width, "
            f"got {student_vectors.shape} and {teacher_vectors.shape}"
        )
    check_where(where, shape)
    if attended is not None and (attended.dtype != jnp.bool_ or attended.shape != (*shape, shape[-1])):
        raise ValueError(
            f"attended must be bool of shape {(*shape, shape[-1])}, got {attended.dtype} of {attended.shape}"
        )
    student = _relations("student_vectors", student_vectors, num_relation_heads, where)
    teacher = _relations("teacher_vectors", stop_gradient(teacher_vectors), num_relation_heads, where)
    if attended is not None:
        hidden = ~attended[..., None, :, :]
        student, teacher = (jnp.where(hidden, -jnp.inf, scores) for scores in (student, teacher))
    return _mean_kl(*_attended(student, teacher, where), where)


def _relations(
    name: str, vectors: Float[Array, "*B S D"], heads: int, where: Bool[Array, "*B S"] | None
) -> Float[Array, "*B N S S"]:
    """The scaled products of every two tokens' vectors, in each relation head."""
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {vectors.dtype}")
    width = vectors.shape[-1]
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width == 0 or width % heads:
        raise ValueError(f"num_relation_heads must divide the width of {name}, got {heads} for {width}")
    wide = vectors.astype(jnp.float32)
    if where is not None:
        wide = jnp.where(where[..., None], wide, 0.0)
    split = wide.reshape(*vectors.shape[:-1], heads, width // heads) / math.sqrt(math.sqrt(width // heads))
    return jnp.einsum("...qnd,...knd->...nqk", split, split, precision=jax.lax.Precision.HIGHEST)


def _attended(
    student: Float[Array, "*B N S S"], teacher: Float[Array, "*B N S S"], where: Bool[Array, "*B S"] | None
) -> tuple[Array, Array]:
    """Both in float32, −inf at keys that are masked or excluded, and 0 throughout for excluded queries."""
    for name, scores in (("student_scores", student), ("teacher_scores", teacher)):
        if not jnp.issubdtype(scores.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {scores.dtype}")
        if scores.ndim < 3 or scores.shape[-1] != scores.shape[-2]:
            raise ValueError(f"{name} must have shape [..., heads, tokens, tokens], got {scores.shape}")
    if student.shape != teacher.shape:
        same = student.shape[:-3] == teacher.shape[:-3] and student.shape[-1] == teacher.shape[-1]
        advice = "; models of different head counts can be compared by relation_kl" if same else ""
        raise ValueError(
            f"student_scores and teacher_scores must have the same shape, got {student.shape} and {teacher.shape}"
            + advice
        )
    check_where(where, (*student.shape[:-3], student.shape[-1]))

    def neutral(scores: Array) -> Array:
        wide = scores.astype(jnp.float32)
        wide = jnp.where(wide <= _LOWEST_SCORE, -jnp.inf, wide)
        if where is None:
            return wide
        wide = jnp.where(where[..., None, None, :], wide, -jnp.inf)
        return jnp.where(where[..., None, :, None], wide, 0.0)

    return neutral(student), neutral(stop_gradient(teacher))


def _mean_kl(
    student: Float[Array, "*B N S S"], teacher: Float[Array, "*B N S S"], where: Bool[Array, "*B S"] | None
) -> Float[Array, "*B S"]:
    return zero_where(where, jnp.mean(forward_kl(student, teacher), axis=-2))
