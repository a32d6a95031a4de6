"""Cross-entropy with integer labels, and the z-loss that goes with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdistill.losses.centred import with_gradient
from jaxdistill.losses.inputs import (
    check_fraction,
    check_labels,
    check_logits,
    check_where,
    is_static,
    neutral_where,
    zero_where,
)


def cross_entropy(
    logits: Float[Array, "*B V"],
    labels: Int[Array, "*B"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    where: Bool[Array, "*B"] | None = None,
) -> Float[Array, "*B"]:
    """−log softmax(logits)[label], or its mean under smoothed labels: (1−ε)·CE(label) + ε·mean over classes of CE.

    Accurate also where the label's probability is nearly 1. Both forward- and reverse-mode differentiable.

    Args:
        logits: [..., V] any float dtype; computed in float32.
        labels: [...] integer class indices. One outside [0, V) that is not `ignore_index` gives NaN, since compiled
            code cannot raise and a silent answer would be worse.
        label_smoothing: ε, plain number in [0, 1]. With ε > 0 a class whose logit is −inf makes the loss +inf.
        ignore_index: positions with this label are excluded, value and gradient 0. Reduce with
            `masked_mean(values, labels != ignore_index)`, or they count as zeros.
        where: [...] bool, True = counted; None counts every position that is not ignored.

    Returns:
        [...] float32, non-negative; +inf where the label's logit is −inf.

    Raises:
        ValueError: shapes differ, labels are not integers, or `label_smoothing` is no plain number in [0, 1].

    References:
        Szegedy et al., Rethinking the Inception Architecture (label smoothing), https://arxiv.org/abs/1512.00567
    """
    check_logits("logits", logits)
    check_labels(labels, logits.shape[:-1])
    check_where(where, logits.shape[:-1])
    if not is_static(label_smoothing):
        raise ValueError(f"label_smoothing must be a plain number in [0, 1], got {label_smoothing!r}")
    check_fraction("label_smoothing", label_smoothing)
    labels = labels.astype(jnp.int32)
    counted = labels != ignore_index
    counted = counted if where is None else counted & where
    (neutral,) = neutral_where(counted, logits)
    smoothing = jnp.asarray(label_smoothing, dtype=jnp.float32)
    safe_labels = jnp.where(counted, labels, 0)
    entropy = _smoothed_cross_entropy if label_smoothing > 0 else _cross_entropy
    return zero_where(counted, entropy(neutral, safe_labels, smoothing))


def z_loss(logits: Float[Array, "*B V"], *, where: Bool[Array, "*B"] | None = None) -> Float[Array, "*B"]:
    """(log Σ exp(logits))²: what keeps a language model's log-normaliser near 0.

    Args:
        logits: [..., V] any float dtype; computed in float32.
        where: [...] bool, True = counted; None counts every position.

    Returns:
        [...] float32, non-negative; 0 at excluded positions.

    Raises:
        ValueError: shapes differ or a dtype is wrong.

    References:
        Chowdhery et al., PaLM, https://arxiv.org/abs/2204.02311
    """
    check_logits("logits", logits)
    check_where(where, logits.shape[:-1])
    (neutral,) = neutral_where(where, logits)
    return zero_where(where, jnp.square(jax.nn.logsumexp(neutral, axis=-1)))


def _label_terms(logits, labels):
    """Cross-entropy [...], gradient [..., V], log-normaliser [...] and logits below their maximum [..., V]."""
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_label = classes == labels[..., None]
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(shifted)
    label_logit = jnp.sum(jnp.where(is_label, shifted, 0.0), axis=-1)
    label_weight = jnp.exp(label_logit)
    # Summed without the label: 1 − q[label], computed as such, would lose what a confident model has left to learn.
    others = jnp.sum(jnp.where(is_label, 0.0, weights), axis=-1)
    normalizer = label_weight + others
    log_normalizer = jnp.log(normalizer)
    likely = label_logit > -1.0
    value = jnp.where(likely, jnp.log1p(others / jnp.where(likely, label_weight, 1.0)), log_normalizer - label_logit)
    gradient = jnp.where(is_label, -others[..., None], weights) / normalizer[..., None]
    known = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(known, value, jnp.nan), jnp.where(known[..., None], gradient, jnp.nan), log_normalizer, shifted


@with_gradient
def _cross_entropy(logits, labels, _smoothing):
    value, gradient, _, _ = _label_terms(logits, labels)
    return value, gradient


@with_gradient
def _smoothed_cross_entropy(logits, labels, smoothing):
    value, gradient, log_normalizer, shifted = _label_terms(logits, labels)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    uniform = log_normalizer - jnp.mean(shifted, axis=-1)
    towards_uniform = jnp.where(classes == labels[..., None], 1.0, 0.0) - 1.0 / logits.shape[-1]
    return (1.0 - smoothing) * value + smoothing * uniform, gradient + smoothing * towards_uniform
