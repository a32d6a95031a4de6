"""A vocabulary spread over devices: what they tell one another, per token, to compare two whole distributions.

Shard k holds the mass P_k of p and Q_k of q, and inside it they are the distributions p_k and q_k. Then

    KL(p ‖ q) = KL(P ‖ Q) + Σ_k P_k · KL(p_k ‖ q_k)          q − p = P_k · (q_k − p_k) + (Q_k − P_k) · q_k

where every part is as accurate near equality as in `centred.py`, and all that a device needs of another is a few
numbers a token: never a tile of logits. A shard is [C, V/K] for C tokens; the numbers are [C, 1] each, and [K, C, 1]
once exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from jaxdistill.losses.centred import (
    SMALLEST_DIVISOR,
    Comparison,
    compare,
    expm1_minus_identity,
    probability_difference,
)
from jaxdistill.losses.distillation import mixture_logits
from jaxdistill.losses.reduce import AxisName

# As in `centred.py`: up to here a series, and from there on the textbook form.
_SERIES_RADIUS = 2.0
_TEXTBOOK_KL = 0.5


def exchange(statistics: Sequence[Float[Array, "C 1"]], axis_name: AxisName | None) -> list[Float[Array, "K C 1"]]:
    """Every shard's numbers, in one collective; without an axis, this one's alone (K = 1)."""
    stacked = jnp.stack(statistics)
    gathered = stacked[None] if axis_name is None else jax.lax.all_gather(stacked, axis_name)
    return [gathered[:, index] for index in range(len(statistics))]


def own(numbers: Float[Array, "K C 1"], axis_name: AxisName | None) -> Float[Array, "C 1"]:
    """This device's entry of exchanged numbers."""
    if axis_name is None:
        return numbers[0]
    return jax.lax.dynamic_index_in_dim(numbers, jax.lax.axis_index(axis_name), 0, keepdims=False)


def compare_shards(
    p_logits: Float[Array, "C V"],
    q_logits: Float[Array, "C V"],
    temperature: Scalar,
    *,
    present: Bool[Array, ""],
    axis_name: AxisName | None,
) -> tuple[Comparison, Float[Array, "C V"]]:
    """This device's classes of the comparison of two whole distributions, and q − p.

    Args:
        p_logits, q_logits: [C, V] float32, this device's shard, of which some class at least is finite on both sides.
        temperature: positive scalar.
        present: whether the shard counts at all; one that is all padding does not.
        axis_name: the mesh axis of the shards; None if this is the whole vocabulary.

    Returns:
        (comparison, q − p), with `kl` and `unsupported` those of the whole vocabulary.
    """
    inside = compare(p_logits, q_logits, temperature)
    inside_difference = probability_difference(inside)
    if axis_name is None:
        return inside, inside_difference
    p_top, p_sum = _top_and_sum(p_logits, temperature, present)
    q_top, q_sum = _top_and_sum(q_logits, temperature, present)
    # One class, p's largest, stands for its shard: log(Q_k/P_k) is its logits' difference less its log-ratio inside, up
    # to a constant of the row. Sent apart, since their sum would round away what two close models have left.
    reference = jnp.argmax(p_logits, axis=-1, keepdims=True)
    unsupported = inside.unsupported & present
    numbers = ShardNumbers(
        *exchange(
            (
                p_top,
                p_sum,
                q_top,
                q_sum,
                jnp.take_along_axis(q_logits, reference, axis=-1),
                jnp.take_along_axis(inside.log_ratio, reference, axis=-1),
                jnp.where(unsupported, jnp.inf, inside.kl),
            ),
            axis_name,
        )
    )
    whole = compare_masses(numbers, temperature)
    p_mass, q_mass, log_ratio, q_excess = (
        own(each, axis_name) for each in (whole.p_mass, whole.q_mass, whole.log_ratio, mass_difference(whole))
    )
    means = whole.log_ratio - numbers.kl  # of the log-ratio inside each shard, under p
    from_mean = own(means, axis_name)[None] - means
    p, q = p_mass * inside.p, q_mass * inside.q
    pair = Comparison(
        p=p,
        q=q,
        centred=inside.centred + jnp.sum(jnp.where(whole.p_mass > 0.0, whole.p_mass * from_mean, 0.0), axis=0),
        log_ratio=inside.log_ratio + log_ratio,
        common=inside.common,
        kl=whole.kl,
        unsupported=jnp.any(numbers.kl == jnp.inf, axis=0),
    )
    close = jnp.abs(log_ratio) < _SERIES_RADIUS
    return pair, jnp.where(close, p_mass * inside_difference + q_excess * inside.q, q - p)


class ShardNumbers(NamedTuple):
    """What the shards tell one another: [K, C, 1] each."""

    p_top: Array
    """p's largest logit; −inf for a shard that does not count."""
    p_sum: Array
    """Σ exp((logit − top)/T)."""
    q_top: Array
    q_sum: Array
    q_reference: Array
    """q's logit of the class that is p's top."""
    log_ratio: Array
    """log(q_k/p_k) of that class."""
    kl: Array
    """KL(p_k ‖ q_k); +inf where unsupported."""


class Masses(NamedTuple):
    """The shards as classes: [K, C, 1], and kl [C, 1]."""

    p_mass: Array
    q_mass: Array
    log_ratio: Array
    """log(Q_k/P_k); 0 where P_k is 0."""
    kl: Array
    """KL(p ‖ q) of the whole vocabulary."""


def compare_masses(numbers: ShardNumbers, temperature: Scalar) -> Masses:
    """The comparison of P with Q, and with what is inside the shards that of p with q."""
    p_max, q_max = (jnp.max(top, axis=0, keepdims=True) for top in (numbers.p_top, numbers.q_top))
    p_weight = numbers.p_sum * jnp.exp((numbers.p_top - p_max) / temperature)
    q_weight = numbers.q_sum * jnp.exp((numbers.q_top - q_max) / temperature)
    p_total, q_total = (jnp.sum(weight, axis=0, keepdims=True) for weight in (p_weight, q_weight))
    p_mass, q_mass = p_weight / p_total, q_weight / q_total

    # The logarithms of Q_k/P_k relative to that of the heaviest shard, and then to their mean under P.
    heaviest = jnp.argmax(p_mass, axis=0, keepdims=True)
    p_top, q_reference, log_ratio = (
        jnp.take_along_axis(each, heaviest, axis=0) for each in (numbers.p_top, numbers.q_reference, numbers.log_ratio)
    )
    counts = p_mass > 0.0
    shift = _exact_sum(numbers.q_reference, -numbers.p_top, -q_reference, p_top) / temperature
    shift = jnp.where(counts, shift - (numbers.log_ratio - log_ratio), 0.0)
    mean = jnp.sum(p_mass * shift, axis=0, keepdims=True)
    v = jnp.where(counts, shift - mean, 0.0)
    rest = jnp.sum(p_mass * v, axis=0, keepdims=True)
    v = jnp.where(counts, v - rest, 0.0)

    offset = ((q_max - q_reference) - (p_max - p_top)) / temperature + log_ratio - (mean + rest)
    log_total = offset + jnp.log(q_total) - jnp.log(p_total)  # log Σ P·e^v, the textbook's way
    near = counts & (jnp.abs(v) < _SERIES_RADIUS)
    excess = jnp.where(
        near,
        p_mass * expm1_minus_identity(jnp.where(near, v, 0.0)),
        q_mass * jnp.exp(jnp.minimum(log_total, 16.0)) - p_mass * (1.0 + v),
    )
    near_kl = jnp.log1p(jnp.sum(excess, axis=0, keepdims=True))
    kl = jnp.maximum(jnp.where(jnp.abs(log_total) > _TEXTBOOK_KL, log_total, near_kl), 0.0)
    inside = jnp.sum(jnp.where(counts, p_mass * numbers.kl, 0.0), axis=0)
    return Masses(p_mass, q_mass, jnp.where(counts, v - kl, 0.0), kl[0] + inside)


def mass_difference(masses: Masses) -> Float[Array, "K C 1"]:
    """Q_k − P_k, to relative float32 precision where the two are close."""
    close = (jnp.abs(masses.log_ratio) < _SERIES_RADIUS) & (masses.p_mass > SMALLEST_DIVISOR)
    ratio = jnp.where(close, masses.log_ratio, 0.0)
    return jnp.where(close, masses.p_mass * (ratio + expm1_minus_identity(ratio)), masses.q_mass - masses.p_mass)


def _exact_sum(*terms: Array) -> Array:
    """The sum of a few terms that may nearly cancel, rounded once (Neumaier)."""
    total, lost = terms[0], jnp.zeros_like(terms[0])
    for term in terms[1:]:
        following = total + term
        larger = jnp.abs(total) >= jnp.abs(term)
        lost += jnp.where(larger, (total - following) + term, (term - following) + total)
        total = following
    return total + lost


def mix_shards(
    teachers: Sequence[Float[Array, "C V"]],
    weights: Sequence[float] | Float[Array, " M"] | None,
    temperature: Scalar,
    *,
    present: Bool[Array, ""],
    axis_name: AxisName | None,
) -> Float[Array, "C V"]:
    """This device's classes of `mixture_logits` over a whole vocabulary."""
    if axis_name is None:
        return mixture_logits(teachers, weights=weights, temperature=temperature)
    # Inside a shard the mixture is one of the teachers' distributions there, each weighed by its mass in the shard too.
    numbers = exchange(
        [number for teacher in teachers for number in _top_and_sum(teacher, temperature, present)], axis_name
    )
    masses = []
    for top, total in zip(numbers[::2], numbers[1::2], strict=True):
        weight = total * jnp.exp((top - jnp.max(top, axis=0, keepdims=True)) / temperature)
        masses.append(own(weight / jnp.sum(weight, axis=0, keepdims=True), axis_name))
    shares = jnp.ones((len(teachers),)) if weights is None else jnp.asarray(weights, jnp.float32)
    shares = jnp.concatenate(masses, axis=-1) * (shares / jnp.sum(shares))[None]
    total = jnp.sum(shares, axis=-1, keepdims=True)
    shares = jnp.where(total > 0.0, shares, 1.0)
    mixed = jax.vmap(lambda logits, share: mixture_logits(logits, weights=share, temperature=temperature))(
        list(teachers), shares
    )
    return mixed + temperature * jnp.log(jnp.maximum(total, SMALLEST_DIVISOR))


def _top_and_sum(logits: Float[Array, "C V"], temperature: Scalar, present: Bool[Array, ""]) -> tuple[Array, Array]:
    """The largest logit, −inf for a shard that does not count, and Σ exp((logit − largest)/T)."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp((logits - top) / temperature), axis=-1, keepdims=True)
    return jnp.where(present, top, -jnp.inf), total
