"""Several teachers as one, and the textbook distillation loss."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar

from jaxdistill.losses.divergences import forward_kl
from jaxdistill.losses.inputs import as_temperature, check_fraction, check_logits, check_same_shape, is_static
from jaxdistill.losses.reduce import masked_mean
from jaxdistill.losses.supervised import cross_entropy


def mixture_logits(
    teacher_logits: Sequence[Float[Array, "*B V"]],
    *,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    temperature: float | Scalar = 1.0,
) -> Float[Array, "*B V"]:
    """T · log(Σ w_k · softmax(t_k / T)): logits whose softmax at T is the teachers' averaged probabilities.

    Any divergence at the same temperature against them is a divergence against the average.

    Args:
        teacher_logits: K ≥ 1 arrays [..., V] of one shape, any float dtype; constants, as in every loss here.
        weights: K non-negative numbers, or a (possibly traced) array [K]; divided by their sum. None weighs all alike.
        temperature: positive number, or a scalar array (which may be traced); a constant.

    Returns:
        [..., V] float32; −inf where every teacher of positive weight has −inf.

    Raises:
        ValueError: no teachers, shapes differ, the weights are not K non-negative numbers with a positive sum, or the
            temperature is not positive.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network (ensembles), https://arxiv.org/abs/1503.02531
    """
    teachers = _checked(teacher_logits)
    temperature = as_temperature(temperature)
    shares = _shares(weights, len(teachers))
    scaled, factors = [], []
    for index, teacher in enumerate(teachers):
        wide = jax.lax.stop_gradient(teacher.astype(jnp.float32))
        below_top = (wide - jnp.max(wide, axis=-1, keepdims=True)) / temperature
        # Divided by the normaliser: the rounding of its logarithm would shift one teacher against another.
        factors.append(shares[index] / jnp.sum(jnp.exp(below_top), axis=-1, keepdims=True))
        scaled.append(jnp.where(shares[index] > 0, below_top, -jnp.inf))
    top = scaled[0]
    for other in scaled[1:]:
        top = jnp.maximum(top, other)
    finite_top = jnp.where(top == -jnp.inf, 0.0, top)
    total = sum(factor * jnp.exp(each - finite_top) for factor, each in zip(factors, scaled, strict=True))
    return temperature * (top + jnp.log(jnp.where(top == -jnp.inf, 1.0, total)))


def most_confident_logits(teacher_logits: Sequence[Float[Array, "*B V"]]) -> Float[Array, "*B V"]:
    """Per position, the logits of the teacher whose most likely class has the highest probability, at temperature 1.

    An alternative to `mixture_logits` where teachers know different things: averaging would blur what one of them is
    sure of.

    Args:
        teacher_logits: K ≥ 1 arrays [..., V] of one shape, any float dtype; constants, as in every loss here.

    Returns:
        [..., V] float32; of equally confident teachers the first one's. NaN where any teacher has NaN.

    Raises:
        ValueError: no teachers, or shapes differ.
    """
    teachers = [jax.lax.stop_gradient(teacher.astype(jnp.float32)) for teacher in _checked(teacher_logits)]
    # the highest probability is 1 / Σ exp(t − max t)
    doubts = [jnp.sum(jnp.exp(each - jnp.max(each, axis=-1, keepdims=True)), axis=-1) for each in teachers]
    surest = jnp.argmin(jnp.stack(doubts), axis=0)  # NaN counts as the lowest: it must not be passed over
    chosen = teachers[0]
    for index, teacher in enumerate(teachers[1:], start=1):
        chosen = jnp.where((surest == index)[..., None], teacher, chosen)
    return chosen


def ensemble_forward_kl(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Sequence[Float[Array, "*B V"]],
    *,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    temperature: float | Scalar = 1.0,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """T² · KL(Σ w_k · p_k ‖ student): `forward_kl` against the teachers' averaged probabilities p_k = softmax(t_k / T).

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: K ≥ 1 arrays [..., V] of any float dtype; constants. With one it is exactly `forward_kl`.
        weights: K non-negative numbers, or a (possibly traced) array [K]; divided by their sum. None weighs all alike.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; +inf where the student has −inf and a teacher of positive weight has not.

    Raises:
        ValueError: as `forward_kl` and `mixture_logits`.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network (ensembles), https://arxiv.org/abs/1503.02531
    """
    # Also checks the arguments where one teacher makes it superfluous.
    mixture = mixture_logits(teacher_logits, weights=weights, temperature=temperature)
    target = teacher_logits[0] if len(teacher_logits) == 1 else mixture
    return forward_kl(student_logits, target, temperature=temperature, where=where)


def distillation_loss(
    student_logits: Float[Array, "*B V"],
    teacher_logits: Float[Array, "*B V"],
    labels: Int[Array, "*B"],
    *,
    temperature: float | Scalar,
    alpha: float | Scalar,
    where: Bool[Array, "*B"] | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """alpha · T² · KL(teacher ‖ student) + (1 − alpha) · CE(student, labels), each a mean over its counted positions.

    alpha weighs the *distillation* term (articles disagree; some call the other weight alpha).

    Args:
        student_logits: [..., V] any float dtype.
        teacher_logits: [..., V] any float dtype; a constant.
        labels: [...] integer class indices; −100 = no label: such a position counts in the first term only.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        alpha: number in [0, 1], or a scalar array. A term whose weight is a plain 0 adds nothing, even if infinite.
        where: [...] bool, True = counted in both terms; None counts every position. Padding must be excluded here.

    Returns:
        (loss, metrics): float32 scalar, and {"kd": mean of T²·KL, "ce": mean of CE}, unweighted float32 scalars.
        A term without counted positions is 0.

    Raises:
        ValueError: as `forward_kl` and `cross_entropy`, or alpha is not a number in [0, 1].

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531
    """
    check_fraction("alpha", alpha)
    divergences = forward_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    entropies = cross_entropy(student_logits, labels, where=where)
    labelled = labels != -100 if where is None else where & (labels != -100)
    metrics = {"kd": masked_mean(divergences, where), "ce": masked_mean(entropies, labelled)}
    weights = {"kd": alpha, "ce": 1.0 - alpha}
    terms = [
        weights[name] * term for name, term in metrics.items() if not (is_static(weights[name]) and weights[name] == 0)
    ]
    return sum(terms, start=jnp.zeros((), jnp.float32)), metrics


def _checked(teacher_logits: Sequence[Float[Array, "*B V"]]) -> list[Array]:
    """The teachers' logits, one array at least, of one shape."""
    teachers = list(teacher_logits)
    if not teachers:
        raise ValueError("teacher_logits must hold at least one teacher's logits, got none")
    for index, teacher in enumerate(teachers):
        check_logits(f"teacher_logits[{index}]", teacher)
        check_same_shape(f"teacher_logits[{index}]", teacher, "teacher_logits[0]", teachers[0])
    return teachers


def _shares(weights: Sequence[float] | Array | None, count: int) -> Float[Array, " K"]:
    """The weights as float32 shares that add up to 1; plain numbers are checked, traced ones cannot be."""
    if weights is None:
        return jnp.full((count,), 1.0 / count, dtype=jnp.float32)
    if isinstance(weights, jax.Array):
        if weights.shape != (count,):
            raise ValueError(f"weights must hold one number per teacher ({count}), got shape {weights.shape}")
        wide = jax.lax.stop_gradient(weights.astype(jnp.float32))
        return wide / jnp.sum(wide)
    numbers = np.asarray(weights, dtype=np.float64)
    if numbers.shape != (count,):
        raise ValueError(f"weights must hold one number per teacher ({count}), got shape {numbers.shape}")
    if not (np.all(np.isfinite(numbers)) and np.all(numbers >= 0) and numbers.sum() > 0):
        raise ValueError(f"weights must be non-negative with a positive sum, got {list(map(float, numbers))}")
    return jnp.asarray(numbers / numbers.sum(), dtype=jnp.float32)
