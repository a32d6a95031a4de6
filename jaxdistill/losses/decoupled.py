"""Decoupled distillation: the label's mass, and how the rest is spread, each with its own weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from jaxdistill.losses.centred import compare, probability_difference, with_gradient
from jaxdistill.losses.inputs import as_temperature, check_labels, check_where, neutral_pair, zero_where
from jaxdistill.losses.shards import ShardNumbers, compare_masses, mass_difference


def dkd(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    labels: Int[Array, "*B"],
    *,
    target_weight: float | Scalar = 1.0,
    other_weight: float | Scalar = 8.0,
    temperature: float | Scalar = 1.0,
    ignore_index: int = -100,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · (target_weight · KL(b_t ‖ b_s) + other_weight · KL(r_t ‖ r_s)), decoupled knowledge distillation.

    b are the two numbers (probability of the label, of all other classes) and r is the distribution over the other
    classes alone. KL(teacher ‖ student) is the first plus (1 − the label's probability) times the second, a factor that
    fades as the teacher grows confident; here it is a constant.

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        labels: [...] integer class indices. One outside [0, V) that is not `ignore_index` gives NaN.
        target_weight: the article's α: number, or a scalar array; a constant.
        other_weight: the article's β (8 on CIFAR-100, 0.5 on ImageNet): number, or a scalar array; a constant.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        ignore_index: positions with this label are excluded, value and gradient 0.
        where: [...] bool, True = counted; None counts every position that is not ignored.

    Returns:
        [...] float32, non-negative for weights that are; 0 if there is one class; +inf where the student has −inf and
        the teacher has not.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Zhao et al., Decoupled Knowledge Distillation, https://arxiv.org/abs/2203.08679
    """
    check_labels(labels, student_logits.shape[:-1])
    check_where(where, student_logits.shape[:-1])
    counted = labels != ignore_index
    counted = counted if where is None else counted & where
    student, teacher = neutral_pair(student_logits, teacher_logits, counted)
    safe_labels = jnp.where(counted, labels.astype(jnp.int32), 0)
    weights = jnp.stack([jnp.asarray(weight, jnp.float32) for weight in (target_weight, other_weight)])
    return zero_where(counted, _decoupled(student, teacher, safe_labels, as_temperature(temperature), weights))


@with_gradient
def _decoupled(student, teacher, labels, temperature, weights):
    """The label and the others are two shards of the vocabulary (see `shards.py`), weighed apart."""
    classes = jax.lax.broadcasted_iota(jnp.int32, student.shape, student.ndim - 1)
    is_label = classes == labels[..., None]
    known = jnp.any(is_label, axis=-1)
    # Without others, 0 against 0: they agree, and have no mass.
    student_others, teacher_others = (jnp.where(is_label, -jnp.inf, logits) for logits in (student, teacher))
    alone = jnp.all((student_others == -jnp.inf) & (teacher_others == -jnp.inf), axis=-1, keepdims=True)
    student_others, teacher_others = (jnp.where(alone, 0.0, logits) for logits in (student_others, teacher_others))
    others = compare(teacher_others, student_others, temperature)

    reference = jnp.argmax(teacher_others, axis=-1, keepdims=True)
    student_label, teacher_label = (
        jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1, keepdims=True) for logits in (student, teacher)
    )
    student_top, teacher_top = (jnp.max(logits, axis=-1, keepdims=True) for logits in (student_others, teacher_others))
    student_sum, teacher_sum = (
        jnp.sum(jnp.exp((logits - top) / temperature), axis=-1, keepdims=True)
        for logits, top in ((student_others, student_top), (teacher_others, teacher_top))
    )
    one, nothing = jnp.ones_like(student_label), jnp.zeros_like(student_label)
    absent = -jnp.inf
    numbers = ShardNumbers(
        p_top=jnp.stack([teacher_label, jnp.where(alone, absent, teacher_top)]),
        p_sum=jnp.stack([one, teacher_sum]),
        q_top=jnp.stack([student_label, jnp.where(alone, absent, student_top)]),
        q_sum=jnp.stack([one, student_sum]),
        q_reference=jnp.stack([student_label, jnp.take_along_axis(student_others, reference, axis=-1)]),
        log_ratio=jnp.stack([nothing, jnp.take_along_axis(others.log_ratio, reference, axis=-1)]),
        kl=jnp.stack([nothing, nothing]),
    )
    masses = compare_masses(numbers, temperature)
    difference = mass_difference(masses)
    target_weight, other_weight = weights[0], weights[1]
    impossible = (student_label == -jnp.inf) & (teacher_label != -jnp.inf)
    value = jnp.where(impossible, jnp.inf, target_weight * masses.kl)
    value += other_weight * jnp.where(others.unsupported, jnp.inf, others.kl)
    gradient = target_weight * jnp.where(is_label, difference[0], difference[1] * others.q)
    gradient += other_weight * jnp.where(is_label, 0.0, probability_difference(others))
    value, gradient = temperature**2 * value[..., 0], temperature * gradient
    return jnp.where(known, value, jnp.nan), jnp.where(known[..., None], gradient, jnp.nan)
