"""Losses between a student's and a teacher's hidden states.

What they share with the divergences: float32; the teacher is a constant; `where` (bool) replaces excluded inputs before
any arithmetic, so that NaN reaches neither value nor gradient. States are [..., D] of any float dtype, the two of one
shape unless said otherwise: a student of another width is first projected to its teacher's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.inputs import as_temperature, check_where, neutral_where, zero_where
from jaxdistill.losses.reduce import masked_mean
from jaxdistill.losses.supervised import cross_entropy


def hidden_state_mse(
    student_states: Float[Array, "*B D"],
    teacher_states: Float[Array, "*B D"],
    *,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """Mean over the width of (student − teacher)², per position.

    Args:
        student_states: [..., D] hidden states, projected to the teacher's width if their own is another.
        teacher_states: [..., D]; a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Romero et al., FitNets: Hints for Thin Deep Nets, https://arxiv.org/abs/1412.6550
    """
    student, teacher = _same_width(student_states, teacher_states, where)
    return zero_where(where, jnp.mean((student - teacher) ** 2, axis=-1))


def embedding_mse(
    student_embeddings: Float[Array, "*B D"],
    teacher_embeddings: Float[Array, "*B D"],
    *,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """`hidden_state_mse` of the embedding layers' outputs: mean over the width of (student − teacher)².

    Args:
        student_embeddings: [..., D], projected to the teacher's width if their own is another.
        teacher_embeddings: [..., D]; a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Jiao et al., TinyBERT (equation 9), https://arxiv.org/abs/1909.10351
    """
    return hidden_state_mse(student_embeddings, teacher_embeddings, where=where)


def cosine_distance(
    student_states: Float[Array, "*B D"],
    teacher_states: Float[Array, "*B D"],
    *,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """1 − cos(student, teacher), per position, computed as ½‖ŝ − t̂‖², which is exact where they nearly agree.

    Args:
        student_states: [..., D] hidden states, projected to the teacher's width if their own is another.
        teacher_states: [..., D]; a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32 in [0, 2]. A vector of zeros has no direction, and no gradient: 1 beside another vector, and 0
        beside zeros.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Sanh et al., DistilBERT, https://arxiv.org/abs/1910.01108
    """
    student, teacher = (_unit(states) for states in _same_width(student_states, teacher_states, where))
    alone = jnp.all(student == 0.0, axis=-1) != jnp.all(teacher == 0.0, axis=-1)
    return zero_where(where, jnp.where(alone, 1.0, 0.5 * jnp.sum((student - teacher) ** 2, axis=-1)))


def patient_loss(
    student_states: Float[Array, "*B D"],
    teacher_states: Float[Array, "*B D"],
    *,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """‖student/‖student‖ − teacher/‖teacher‖‖², per position: PKD's, for the [CLS] states of the mapped layers.

    Args:
        student_states: [..., D]; PKD takes [L, B, D], the first token's state after every mapped layer but the last.
        teacher_states: [..., D]; a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32 in [0, 4]. A vector of zeros stays one when normalised, and has no gradient.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Sun et al., Patient Knowledge Distillation for BERT Model Compression (equation 7),
        https://arxiv.org/abs/1908.09355
    """
    student, teacher = _same_width(student_states, teacher_states, where)
    return zero_where(where, jnp.sum((_unit(student) - _unit(teacher)) ** 2, axis=-1))


def similarity_preserving(
    student_states: Float[Array, "*B D"],
    teacher_states: Float[Array, "*B E"],
    *,
    where: Bool[Array, "*B"] | None = None,
) -> Scalar:
    """‖G_s − G_t‖² / b², where G is the batch's matrix of inner products between examples, its rows normalised.

    Couples the batch, and so is no mean over examples: micro-batches and devices each compare their own.

    Args:
        student_states: [B, ..., D]: an example is one vector, or one for each of its positions, taken together.
        teacher_states: [B, ..., E] of any width; a constant.
        where: [B, ...] bool, True = counted; None counts everything. An example without any counted position is left
            out, and b is the number of the others.

    Returns:
        float32 scalar, non-negative; 0 without examples.

    Raises:
        ValueError: shapes other than the widths differ, or a dtype is wrong.

    References:
        Tung and Mori, Similarity-Preserving Knowledge Distillation, https://arxiv.org/abs/1907.09682
    """
    _check_states("student_states", student_states)
    _check_states("teacher_states", teacher_states)
    shape = student_states.shape[:-1]
    if teacher_states.shape[:-1] != shape or not shape:
        raise ValueError(
            "student_states and teacher_states must be [examples, ..., width], alike in all but the width, "
            f"got {student_states.shape} and {teacher_states.shape}"
        )
    check_where(where, shape)
    student, teacher = neutral_where(where, student_states, stop_gradient(teacher_states))
    examples = shape[0]
    counted = jnp.ones((examples,), bool) if where is None else jnp.any(where.reshape(examples, -1), axis=-1)

    def similarities(states: Array) -> Array:
        flat = states.reshape(examples, -1)
        return _unit(jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST))

    count = jnp.maximum(jnp.sum(counted, dtype=jnp.int32).astype(jnp.float32), 1.0)
    return jnp.sum((similarities(student) - similarities(teacher)) ** 2) / count**2


def contrastive(
    student_states: Float[Array, "B D"],
    teacher_states: Float[Array, "B D"],
    *,
    temperature: float | Scalar = 0.1,
    where: Bool[Array, " B"] | None = None,
) -> Scalar:
    """Mean over i of −log(exp(ŝ_i·t̂_i/τ) / Σ_j exp(ŝ_i·t̂_j/τ)): each student state is to find its own teacher's.

    The other examples of the batch are the negatives, so that it is no mean over examples that could be split. Equal
    states do not give 0, unless there is one example.

    Args:
        student_states: [B, D], one state an example, projected to the teacher's width if their own is another.
        teacher_states: [B, D]; a constant.
        temperature: τ, positive number, or a scalar array (which may be traced); a constant. Nothing is multiplied by
            its square: it scales similarities, and not logits that two models share.
        where: [B] bool, True = counted, both as an example and as a negative; None counts every example.

    Returns:
        float32 scalar, non-negative; 0 without examples.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Tian et al., Contrastive Representation Distillation, https://arxiv.org/abs/1910.10699
        van den Oord et al., Representation Learning with Contrastive Predictive Coding (the in-batch form),
        https://arxiv.org/abs/1807.03748
    """
    if student_states.ndim != 2:
        raise ValueError(f"student_states must have shape [examples, width], got {student_states.shape}")
    student, teacher = _same_width(student_states, teacher_states, where)
    similarities = jnp.matmul(_unit(student), _unit(teacher).T, precision=jax.lax.Precision.HIGHEST)
    logits = similarities / as_temperature(temperature)
    if where is not None:
        logits = jnp.where(where[None, :], logits, -jnp.inf)
    return masked_mean(cross_entropy(logits, jnp.arange(logits.shape[0]), where=where), where)


def _check_states(name: str, states: Float[Array, "*B D"]) -> None:
    """Raises ValueError unless `states` is a floating array with a width."""
    if not jnp.issubdtype(states.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {states.dtype}")
    if states.ndim == 0 or states.shape[-1] == 0:
        raise ValueError(f"{name} must have shape [..., width], got {states.shape}")


def _same_width(
    student: Float[Array, "*B D"], teacher: Float[Array, "*B D"], where: Bool[Array, "*B"] | None
) -> tuple[Array, Array]:
    """Both in float32, with excluded positions set to 0; the teacher a constant."""
    _check_states("student's states", student)
    _check_states("teacher's states", teacher)
    if student.shape != teacher.shape:
        advice = "; project the student's to the teacher's width" if student.shape[:-1] == teacher.shape[:-1] else ""
        raise ValueError(
            f"student's and teacher's states must have the same shape, got {student.shape} and {teacher.shape}" + advice
        )
    check_where(where, student.shape[:-1])
    wide_student, wide_teacher = neutral_where(where, student, stop_gradient(teacher))
    return wide_student, wide_teacher


def _unit(states: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Each vector divided by its length; zeros stay zeros, with gradient 0."""
    largest = stop_gradient(jnp.max(jnp.abs(states), axis=-1, keepdims=True))
    scaled = states / jnp.where(largest == 0.0, 1.0, largest)  # so that no square over- or underflows
    squared = jnp.sum(scaled**2, axis=-1, keepdims=True)
    empty = squared == 0.0
    return jnp.where(empty, 0.0, scaled / jnp.sqrt(jnp.where(empty, 1.0, squared)))
