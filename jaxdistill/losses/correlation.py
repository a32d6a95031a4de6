"""Distillation by correlation: the student ranks classes, and examples, as its teacher does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.inputs import as_temperature, neutral_pair
from jaxdistill.losses.reduce import masked_mean

# A spread this small beside the values themselves is the rounding of equal numbers, and has no direction.
_ROUNDING = 1e-6


def dist(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    inter_weight: float | Scalar = 1.0,
    intra_weight: float | Scalar = 1.0,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Scalar:
    """inter_weight · mean over examples of 1 − ρ(q_i, p_i) + intra_weight · mean over classes of 1 − ρ(q_·j, p_·j).

    ρ is Pearson's correlation, p = softmax(teacher/T), q = softmax(student/T): of an example's classes, and of a
    class's probabilities over the batch. The second couples the batch, so that this is no mean that could be split.
    There is no T², which the authors' code has and their article has not: a correlation, and so its gradient, does not
    fade as the temperature grows.

    Args:
        student_logits: [..., V] any float dtype; all leading axes are the batch.
        teacher_logits: [..., V] any float dtype; a constant.
        inter_weight, intra_weight: the article's β and γ; numbers, or scalar arrays.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted in both parts; None counts every example.

    Returns:
        float32 scalar, non-negative for weights that are; 0 without examples. What does not vary (one class, one
        example, a class that cannot occur) has no correlation: 0 if it varies in neither model, and 1 if it does in
        one. Classes that are −inf throughout are not part of the mean.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Huang et al., Knowledge Distillation from A Stronger Teacher, https://arxiv.org/abs/2205.10536
    """
    temperature = as_temperature(temperature)
    pair = neutral_pair(student_logits, stop_gradient(teacher_logits), where)
    classes = student_logits.shape[-1]
    student, teacher = (logits.reshape(-1, classes) for logits in pair)
    counted = jnp.ones(student_logits.shape[:-1], bool) if where is None else where
    counted = counted.reshape(-1, 1)
    q, p = (jax.nn.softmax(logits / temperature, axis=-1) for logits in (student, teacher))
    possible = counted & ((student > -jnp.inf) | (teacher > -jnp.inf))
    examples = jnp.broadcast_to(counted, possible.shape)
    inter = masked_mean(_pearson_distance(q, p, possible, axis=1), counted[:, 0])
    intra = masked_mean(_pearson_distance(q, p, examples, axis=0), jnp.any(possible, axis=0))
    return inter_weight * inter + intra_weight * intra


def _pearson_distance(
    student: Float[Array, "B V"], teacher: Float[Array, "B V"], counted: Bool[Array, "B V"], *, axis: int
) -> Float[Array, " A"]:
    """1 − Pearson's correlation along an axis, as ½‖difference of directions‖², exact near agreement."""
    ours, theirs = (_direction(values, counted, axis) for values in (student, teacher))
    alone = jnp.all(ours == 0.0, axis=axis) != jnp.all(theirs == 0.0, axis=axis)
    return jnp.where(alone, 1.0, 0.5 * jnp.sum((ours - theirs) ** 2, axis=axis))


def _direction(values: Float[Array, "B V"], counted: Bool[Array, "B V"], axis: int) -> Float[Array, "B V"]:
    """Counted values less their mean, of length 1; 0 throughout where they do not vary."""
    values = jnp.where(counted, values, 0.0)
    largest = stop_gradient(jnp.max(values, axis=axis, keepdims=True))
    scaled = values / jnp.where(largest == 0.0, 1.0, largest)  # so that no square underflows
    count = jnp.maximum(jnp.sum(counted, axis=axis, keepdims=True, dtype=jnp.int32).astype(jnp.float32), 1.0)
    centred = jnp.where(counted, scaled - jnp.sum(scaled, axis=axis, keepdims=True) / count, 0.0)
    squared = jnp.sum(centred**2, axis=axis, keepdims=True)
    constant = squared <= count * _ROUNDING**2
    return jnp.where(constant, 0.0, centred / jnp.sqrt(jnp.where(constant, 1.0, squared)))
