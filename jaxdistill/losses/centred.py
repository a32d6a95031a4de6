"""Comparing two softmax distributions without cancellation: the arithmetic all divergences share.

In float32 the textbook Σ p (log p − log q) is rounding noise once the two are close, which is where a
converging student lives. Here everything is built from d = q_logits − p_logits, kept to the last bit, and centred by
its mean under p:

    v = d/T − E_p[d/T]          KL(p ‖ q) = log1p(E_p[expm1(v) − v])          log(q/p) = v − KL

Every term of the expectation is non-negative, so nothing cancels; q − p = p·expm1(log(q/p)) inherits that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Scalar

# Up to here expm1(x) − x is summed as a series; beyond, e^x and 1 + x differ enough to be subtracted.
_SERIES_RADIUS = 2.0
_SERIES = [1.0 / math.factorial(k + 2) for k in range(12)]
# Below this a float32 probability has lost digits (denormals) and is no divisor.
SMALLEST_DIVISOR = 1e-30
# From here on the textbook difference of log-normalisers is the more accurate form.
_TEXTBOOK_KL = 0.5


class Comparison(NamedTuple):
    """Two distributions over the last axis, p and q, at one temperature; row statistics keep that axis as 1."""

    p: Float[Array, "*B V"]
    q: Float[Array, "*B V"]
    centred: Float[Array, "*B V"]
    """v: the log-ratio up to a row constant, with mean 0 under p; 0 where either logit is −inf."""
    log_ratio: Float[Array, "*B V"]
    """log(q/p) up to the rounding of a row constant; 0 where either logit is −inf."""
    common: Bool[Array, "*B V"]
    """Both logits finite."""
    kl: Float[Array, "*B 1"]
    """KL(p ‖ q), to be read only where not `unsupported`."""
    unsupported: Bool[Array, "*B 1"]
    """Somewhere p's logit is finite and q's is −inf: the whole KL(p ‖ q) is +inf."""


def _row_sum(values: Float[Array, "*B V"]) -> Float[Array, "*B 1"]:
    return jnp.sum(values, axis=-1, keepdims=True)


def _exact_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """a − b as (rounded, rest), exact together (Knuth's two-sum); both are to be ignored where a or b is infinite."""
    rounded = a - b
    minus_b = rounded - a
    return rounded, stop_gradient((a - (rounded - minus_b)) - (b + minus_b))


def expm1_minus_identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """e^x − 1 − x for |x| ≤ 2, to float32 precision."""
    series = jnp.full_like(x, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = series * x + coefficient
    return x * x * series


def identity_minus_log1p(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x − log(1 + x) for x > −1, to float32 precision also near 0, where the two cancel."""
    near = (x > -0.5) & (x < 1.0)
    small = jnp.where(near, x, 0.0)
    y = small / (2.0 + small)  # log1p(x) = 2·artanh(y), and x − 2y = x·y
    square = y * y
    series = jnp.full_like(x, 1.0 / 13.0)
    for odd in (11.0, 9.0, 7.0, 5.0, 3.0):
        series = series * square + 1.0 / odd
    return jnp.where(near, y * (small - 2.0 * square * series), x - jnp.log1p(jnp.where(near, 0.0, x)))


def compare(p_logits: Float[Array, "*B V"], q_logits: Float[Array, "*B V"], temperature: Scalar) -> Comparison:
    """Compares softmax(p_logits/T) with softmax(q_logits/T). Both float32 and of one shape."""
    p_top = stop_gradient(jnp.max(p_logits, axis=-1, keepdims=True))
    q_top = stop_gradient(jnp.max(q_logits, axis=-1, keepdims=True))
    p_weight, q_weight = jnp.exp((p_logits - p_top) / temperature), jnp.exp((q_logits - q_top) / temperature)
    p_sum, q_sum = _row_sum(p_weight), _row_sum(q_weight)

    # The centre: once by the mean itself, once more by what its rounding left over (`rest`).
    difference, tail = _exact_difference(q_logits, p_logits)
    common = jnp.abs(difference) < jnp.inf
    centre = stop_gradient(_row_sum(jnp.where(common, p_weight * difference, 0.0)) / p_sum)
    v = jnp.where(common, ((difference - centre) + tail) / temperature, 0.0)
    rest = _row_sum(jnp.where(p_weight > 0.0, p_weight * v, 0.0)) / p_sum

    top_difference, top_tail = _exact_difference(q_top, p_top)
    offset = ((top_difference - centre) + top_tail) / temperature
    # q_weight·scale = p·e^v. Where `near` is used, offset ≤ log V + KL; clipped, nothing overflows where it is not.
    scale = jnp.exp(jnp.minimum(offset, 16.0)) / p_sum
    series = jnp.abs(v) < _SERIES_RADIUS
    excess = jnp.where(
        series & common,
        p_weight * expm1_minus_identity(jnp.where(series, v, 0.0)) / p_sum,
        q_weight * scale - jnp.where(p_weight > 0.0, p_weight * (1.0 + v), 0.0) / p_sum,
    )
    mean_excess = _row_sum(excess)  # with −p where only q is impossible: log1p(mean_excess + rest) stays log Σ p·e^v
    near = mean_excess - identity_minus_log1p(mean_excess + rest)  # = log1p(mean_excess + rest) − rest
    log_total = offset + jnp.log(q_sum) - jnp.log(p_sum)  # of p·e^v, the textbook's way
    kl = jnp.where(jnp.abs(log_total) > _TEXTBOOK_KL, log_total - rest, near)
    return Comparison(
        p=p_weight / p_sum,
        q=q_weight / q_sum,
        centred=v - rest,
        log_ratio=v - (rest + kl),
        common=common,
        kl=jnp.maximum(kl, 0.0),
        unsupported=jnp.any((q_logits == -jnp.inf) & (p_logits != -jnp.inf), axis=-1, keepdims=True),
    )


def probability_difference(pair: Comparison) -> Float[Array, "*B V"]:
    """q − p, to relative float32 precision where the two are close."""
    close = pair.common & (jnp.abs(pair.log_ratio) < _SERIES_RADIUS) & (pair.p > SMALLEST_DIVISOR)
    ratio = jnp.where(close, pair.log_ratio, 0.0)
    difference = jnp.where(close, pair.p * (ratio + expm1_minus_identity(ratio)), pair.q - pair.p)
    # The differences add up to 0. What they do add up to is the rounding of the row constant in the log-ratio, which is
    # taken back, unless so little of q is close that the others' own rounding would be blown up.
    close_q = jnp.where(close, pair.q, 0.0)
    surplus, close_mass = _row_sum(difference), _row_sum(close_q)
    heavy = close_mass * (1.0 + pair.kl) > 0.25
    return difference - close_q * jnp.where(heavy, surplus / jnp.where(heavy, close_mass, 1.0), 0.0)


def with_gradient(value_and_gradient: Callable[..., tuple[Array, Array]]) -> Callable[..., Array]:
    """The value of a function (student, *constants) → (value [...], d value/d student [..., V]), with that derivative.

    A custom JVP, not a custom VJP: it serves forward and reverse mode. All arguments but the first are constants.
    Compiled, so that a call outside of `jit` is one program and not a hundred.
    """

    @jax.jit
    def value_only(student: Array, *constants: Array) -> Array:
        return value_and_gradient(student, *constants)[0]

    differentiable, both = jax.custom_jvp(value_only), jax.jit(value_and_gradient)

    @differentiable.defjvp
    def _jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        value, gradient = both(*primals)
        return value, jnp.sum(gradient * tangents[0], axis=-1)

    @functools.wraps(value_and_gradient)
    def value(student: Array, *constants: Array) -> Array:
        return differentiable(student, *(stop_gradient(constant) for constant in constants))

    return value
