"""Divergences between a student's and a teacher's logits, per position, in float32, unreduced.

What all of them share. Logits are [..., V] of any float dtype and one shape; the result is float32 [...], and 0 where
`where` (bool, [...]) is False: inputs there are replaced before any arithmetic, so that NaN reaches neither value nor
gradient. Teacher logits and the temperature are constants: their gradient is exactly zero. −inf logits are legal on
either side (a class that cannot occur); a row that is −inf throughout, or holds NaN or +inf, gives NaN. Both value and
gradient keep about 3e-6 relative precision when the two models nearly agree (see `centred.py`). All work under `jit`,
`grad`, `jvp`/`jacfwd`, `vmap`, `pmap`, `shard_map` and `scan`. KL-type losses are multiplied by T², so that their
gradient does not fade as the temperature grows (Hinton et al., https://arxiv.org/abs/1503.02531).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.centred import (
    SMALLEST_DIVISOR,
    compare,
    identity_minus_log1p,
    probability_difference,
    with_gradient,
)
from jaxdistill.losses.inputs import (
    as_temperature,
    check_fraction,
    is_static,
    neutral_pair,
    zero_where,
)


def forward_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(teacher ‖ student) = T² · Σ p (log p − log q), p = softmax(teacher/T), q = softmax(student/T).

    The gradient with respect to the student's logits is T · (q − p).

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; +inf where the student has −inf and the teacher has not.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531
    """
    return between_logits(_forward_kl, student_logits, teacher_logits, where, as_temperature(temperature))


def reverse_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(student ‖ teacher) = T² · Σ q (log q − log p), p = softmax(teacher/T), q = softmax(student/T).

    The gradient with respect to the student's logits is T · q · (log q − log p − KL).

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; +inf where the teacher has −inf and the student has not, which leaves no
        meaningful gradient.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, https://arxiv.org/abs/2306.08543
    """
    return between_logits(_reverse_kl, student_logits, teacher_logits, where, as_temperature(temperature))


def jensen_shannon(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    beta: float = 0.5,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · (β·KL(p ‖ m) + (1−β)·KL(q ‖ m)), m = β·p + (1−β)·q, p = softmax(teacher/T), q = softmax(student/T).

    The gradient with respect to the student's logits is T · (1−β) · q · (log(q/m) − KL(q ‖ m)).

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        beta: plain number in [0, 1], the teacher's share of the mixture. 0 means `forward_kl` and 1 `reverse_kl`, a
            jump: the divergence itself tends to 0 there (divided by β or 1−β, it tends to them).
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative, finite also where one side alone has −inf (for 0 < beta < 1).

    Raises:
        ValueError: shapes differ, a dtype is wrong, beta is no plain number in [0, 1], or temperature is not positive.

    References:
        Agarwal et al., On-Policy Distillation of Language Models (generalised JSD), https://arxiv.org/abs/2306.13649
    """
    if not is_static(beta):
        raise ValueError(f"beta must be a plain number in [0, 1], got {beta!r}")
    check_fraction("beta", beta)
    if beta == 0.0:
        return forward_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    if beta == 1.0:
        return reverse_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    shares = jnp.asarray([beta, 1.0 - beta], dtype=jnp.float32)  # 1 − β before rounding
    return between_logits(_jensen_shannon, student_logits, teacher_logits, where, as_temperature(temperature), shares)


def soft_cross_entropy(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """−T² · Σ p log q, p = softmax(teacher/T), q = softmax(student/T): `forward_kl` plus T²·entropy(teacher).

    The gradient with respect to the student's logits is `forward_kl`'s, T · (q − p). The value does not reach 0.

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; +inf where the student has −inf and the teacher has not.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, https://arxiv.org/abs/1909.10351
    """
    return between_logits(_soft_cross_entropy, student_logits, teacher_logits, where, as_temperature(temperature))


def total_variation(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """½ · Σ |q − p|, p = softmax(teacher/T), q = softmax(student/T). No T²: its gradient would grow with T.

    The (sub)gradient is ½/T · q · (sign − Σ q·sign), sign = sign(q − p).

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32 in [0, 1].

    Raises:
        ValueError: shapes differ, a dtype is wrong, or the temperature is not positive.

    References:
        Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, https://arxiv.org/abs/2307.15190
    """
    return between_logits(_total_variation, student_logits, teacher_logits, where, as_temperature(temperature))


def logit_mse(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """Mean over classes of (student − teacher)², of the raw logits: no temperature.

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32. A class that is −inf on both sides adds 0 (and counts in the mean); on one side alone, +inf.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Ba and Caruana, Do Deep Nets Really Need to be Deep?, https://arxiv.org/abs/1312.6184
    """
    return between_logits(_logit_mse, student_logits, teacher_logits, where)


def between_logits(divergence, student_logits, teacher_logits, where, *constants) -> Float[Array, "*B"]:
    """`divergence` of checked, masked float32 logits."""
    student, teacher = neutral_pair(student_logits, teacher_logits, where)
    return zero_where(where, divergence(student, teacher, *constants))


@with_gradient
def _forward_kl(student, teacher, temperature):
    pair = compare(teacher, student, temperature)
    value = jnp.where(pair.unsupported, jnp.inf, temperature**2 * pair.kl)[..., 0]
    return value, temperature * probability_difference(pair)


@with_gradient
def _reverse_kl(student, teacher, temperature):
    pair = compare(student, teacher, temperature)  # centred under the student: log(p/q) + KL = v
    value = jnp.where(pair.unsupported, jnp.inf, temperature**2 * pair.kl)[..., 0]
    return value, -temperature * jnp.where(pair.p > 0.0, pair.p * pair.centred, 0.0)


@with_gradient
def _soft_cross_entropy(student, teacher, temperature):
    pair = compare(teacher, student, temperature)
    top = jax.lax.stop_gradient(jnp.max(student, axis=-1, keepdims=True))
    scaled = (student - top) / temperature
    # log(1 + the rest), not log of all: with a confident student the rest is below 1's last digit.
    beyond_top = jnp.sum(jnp.where(scaled == 0.0, 0.0, jnp.exp(scaled)), axis=-1)
    ties = jnp.sum(scaled == 0.0, axis=-1, dtype=jnp.int32).astype(jnp.float32) - 1.0
    log_normalizer = jnp.log1p(beyond_top + ties)
    empty = ~pair.common | (pair.p == 0.0)  # p log q is 0 there
    expected = jnp.sum(jnp.where(empty, 0.0, pair.p * jnp.where(empty, 0.0, scaled)), axis=-1)
    value = jnp.where(pair.unsupported[..., 0], jnp.inf, temperature**2 * (log_normalizer - expected))
    return value, temperature * probability_difference(pair)


@with_gradient
def _total_variation(student, teacher, temperature):
    pair = compare(teacher, student, temperature)
    difference = probability_difference(pair)
    gradient = 0.5 / temperature * pair.q * less_mean(jnp.sign(difference), pair.q)
    return 0.5 * jnp.sum(jnp.abs(difference), axis=-1), gradient


@with_gradient
def _jensen_shannon(student, teacher, temperature, shares):
    """With a = (m − p)/p and b = (m − q)/q, KL(p ‖ m) = E_p[a − log1p(a)] and KL(q ‖ m) = E_q[b − log1p(b)]."""
    pair = compare(teacher, student, temperature)
    beta, rest = shares[0], shares[1]
    difference = probability_difference(pair)
    _, teacher_part = against_mixture(pair.p, rest * difference)
    b, student_part = against_mixture(pair.q, -beta * difference)
    value = temperature**2 * (beta * jnp.sum(teacher_part, axis=-1) + rest * jnp.sum(student_part, axis=-1))
    return value, -temperature * rest * pair.q * less_mean(jnp.log1p(b), pair.q)


def less_mean(values, weights):
    """Values less their weighted mean; twice, since what is left of a peak is below the first mean's rounding."""
    once = values - jnp.sum(weights * values, axis=-1, keepdims=True)
    return once - jnp.sum(weights * once, axis=-1, keepdims=True)


def against_mixture(p, excess):
    """(m − p)/p and p times (that − log1p of it), for excess = m − p; where p is 0, 0 and `excess`."""
    present = p > SMALLEST_DIVISOR
    ratio = jnp.where(present, excess / jnp.where(present, p, 1.0), 0.0)
    return ratio, jnp.where(present, p * identity_minus_log1p(ratio), excess)


@with_gradient
def _logit_mse(student, teacher):
    absent = (student == -jnp.inf) & (teacher == -jnp.inf)
    difference = jnp.where(absent, 0.0, student) - jnp.where(absent, 0.0, teacher)
    return jnp.mean(difference**2, axis=-1), 2.0 / student.shape[-1] * difference
