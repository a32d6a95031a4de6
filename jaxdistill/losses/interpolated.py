"""Divergences from a target between teacher and student: the mixture of their probabilities, or of their logits.

As all divergences (see `divergences.py`): [..., V] logits of any float dtype to [...] float32, multiplied by T², the
teacher and the temperature constants, −inf legal, `where` replacing excluded inputs before any arithmetic.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.centred import SMALLEST_DIVISOR, compare, probability_difference, with_gradient
from jaxdistill.losses.divergences import against_mixture, between_logits, forward_kl, less_mean
from jaxdistill.losses.inputs import as_temperature, check_fraction, is_static, neutral_pair


def skewed_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    skew: float = 0.1,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(p ‖ m), m = skew·p + (1−skew)·q, p = softmax(teacher/T), q = softmax(student/T).

    With a little of the teacher in the mixture, a class that the student has forgotten costs a finite amount. The
    gradient with respect to the student's logits is T · q · (E_q[r] − r), r = (1−skew)·p/m.

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        skew: plain number in [0, 1], the teacher's share of the mixture: 0 is `forward_kl`, and at 1 nothing is left.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; finite also where the student alone has −inf (for skew > 0).

    Raises:
        ValueError: shapes differ, a dtype is wrong, skew is no plain number in [0, 1], or temperature is not positive.

    References:
        Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models,
        https://arxiv.org/abs/2402.03898
    """
    if not is_static(skew):
        raise ValueError(f"skew must be a plain number in [0, 1], got {skew!r}")
    check_fraction("skew", skew)
    if skew == 0.0:
        return forward_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    students_share = jnp.asarray(1.0 - skew, jnp.float32)
    return between_logits(
        _skewed_kl, student_logits, teacher_logits, where, as_temperature(temperature), students_share
    )


@with_gradient
def _skewed_kl(student, teacher, temperature, share):
    """With a = (m − p)/p, KL(p ‖ m) = E_p[a − log1p(a)], and 1 − p/m = a/(1 + a)."""
    pair = compare(teacher, student, temperature)
    a, parts = against_mixture(pair.p, share * probability_difference(pair))
    missing = jnp.where(pair.p > SMALLEST_DIVISOR, a / (1.0 + a), 1.0)
    gradient = temperature * share * pair.q * less_mean(missing, pair.q)
    return temperature**2 * jnp.sum(parts, axis=-1), gradient


def taid(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    *,
    progress: float | Scalar,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(softmax(target/T) ‖ softmax(student/T)), target = (1−progress) · student + progress · teacher.

    The target, the student's own share of it included, is a constant: as `progress` rises from 0 to 1 over a training
    run, it moves from where the student is to its teacher, where this is `forward_kl`.

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        progress: number in [0, 1], or a scalar array (which may be traced); a constant.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; +inf where the student has −inf and the teacher has not, at progress 1.

    Raises:
        ValueError: shapes differ, a dtype is wrong, progress is no number in [0, 1], or temperature is not positive.

    References:
        Shing et al., TAID: Temporally Adaptive Interpolated Distillation, https://arxiv.org/abs/2501.16937
    """
    check_fraction("progress", progress)
    if not is_static(progress) and np.shape(progress) != ():  # pyright: ignore[reportArgumentType]
        raise ValueError(f"progress must be a scalar, got shape {np.shape(progress)}")  # pyright: ignore
    moved = stop_gradient(jnp.asarray(progress, jnp.float32))
    # Relative to their tops, so that what decides is not rounded at the size of a shift that does not matter.
    student, teacher = (
        logits - stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        for logits in neutral_pair(student_logits, teacher_logits, where)
    )
    target = stop_gradient(_share(1.0 - moved, student) + _share(moved, teacher))
    return forward_kl(student, target, temperature=temperature, where=where)


def _share(share: Scalar, logits: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    """share · logits, where no share of −inf is 0."""
    return jnp.where(share == 0.0, 0.0, share * logits)
