"""The terms of the fused loss on one tile of logits: per token, their values and what they ask of the student's logits.

A tile is [C, V]: C tokens by all the classes, or by one device's shard of them. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from jaxdistill.losses.divergences import against_mixture
from jaxdistill.losses.reduce import AxisName
from jaxdistill.losses.shards import compare_shards, exchange, mix_shards, own

Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class Shard(NamedTuple):
    """Which classes of the whole vocabulary a tile's columns are."""

    start: Int[Array, ""]
    """The first column's class."""
    vocab_size: int
    """How many classes there are; columns beyond are padding."""
    axis_name: AxisName | None
    """The mesh axis over which the vocabulary is spread."""

    @property
    def present(self) -> Bool[Array, ""]:
        """Whether the tile holds any class; if not, nothing in it is counted."""
        return self.start < self.vocab_size

    def columns(self, logits: Float[Array, "C V"]) -> Int[Array, "C V"]:
        """Each column's class."""
        return self.start + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)

    def without_padding(self, logits: Float[Array, "C V"]) -> Float[Array, "C V"]:
        """−inf in columns that are no class; a tile without any class is left as it is, and not `present`."""
        return jnp.where(self.present & (self.columns(logits) >= self.vocab_size), -jnp.inf, logits)


def divergence_terms(
    student: Float[Array, "C V"],
    teachers: Sequence[Float[Array, "C V"]],
    teacher_weights: Sequence[float] | Float[Array, " M"] | None,
    temperature: Scalar,
    shard: Shard,
    *,
    divergence: Divergence,
    beta: float,
) -> tuple[Float[Array, "C 1"], Float[Array, "C V"]]:
    """T² times the divergence, and its derivative with respect to the student's logits."""
    place = {"present": shard.present, "axis_name": shard.axis_name}
    teacher = teachers[0]
    if len(teachers) > 1:
        teacher = mix_shards(teachers, teacher_weights, temperature, **place)
    if divergence == "reverse_kl":
        pair, _ = compare_shards(student, teacher, temperature, **place)
        gradient = -temperature * jnp.where(pair.p > 0.0, pair.p * pair.centred, 0.0)
        return jnp.where(pair.unsupported, jnp.inf, temperature**2 * pair.kl), gradient
    pair, difference = compare_shards(teacher, student, temperature, **place)
    if divergence == "forward_kl":
        return jnp.where(pair.unsupported, jnp.inf, temperature**2 * pair.kl), temperature * difference
    # As in `divergences.py`: a = (m − p)/p, b = (m − q)/q, and the sums are of p·(a − log1p(a)) and q·(b − log1p(b)).
    rest = 1.0 - beta
    _, teacher_part = against_mixture(pair.p, rest * difference)
    b, student_part = against_mixture(pair.q, -beta * difference)
    here = jnp.sum(beta * teacher_part + rest * student_part, axis=-1, keepdims=True)
    (parts,) = exchange([jnp.where(shard.present, here, 0.0)], shard.axis_name)
    centred = _less_mean(jnp.log1p(b), pair.q, shard.axis_name)
    return temperature**2 * jnp.sum(parts, axis=0), -temperature * rest * pair.q * centred


def _less_mean(values: Float[Array, "C V"], weights: Float[Array, "C V"], axis_name: AxisName | None) -> Array:
    """Values less their weighted mean; twice, since what is left of a peak is below the first mean's rounding."""
    mass = jnp.sum(weights, axis=-1, keepdims=True)
    divisor = jnp.where(mass > 0.0, mass, 1.0)
    mean = jnp.sum(weights * values, axis=-1, keepdims=True) / divisor
    once = values - mean
    rest = jnp.sum(weights * once, axis=-1, keepdims=True) / divisor
    masses, means = exchange([mass, mean + rest], axis_name)
    return (once - rest) + jnp.sum(masses * (own(means, axis_name)[None] - means), axis=0)


class LabelTerms(NamedTuple):
    """Cross-entropy and log-normaliser at T = 1, and their derivatives with respect to the student's logits."""

    cross_entropy: Float[Array, "C 1"]
    cross_entropy_gradient: Float[Array, "C V"]
    log_normalizer: Float[Array, "C 1"]
    probabilities: Float[Array, "C V"]


def label_terms(student: Float[Array, "C V"], labels: Int[Array, " C"], shard: Shard) -> LabelTerms:
    """As `cross_entropy`: accurate for a confident model too, and NaN for a label that is no class."""
    is_label = (shard.columns(student) == labels[:, None]) & shard.present
    top = jnp.max(student, axis=-1, keepdims=True)
    weights = jnp.exp(student - top)
    others = jnp.sum(jnp.where(is_label, 0.0, weights), axis=-1, keepdims=True)
    label_logit = jnp.sum(jnp.where(is_label, student, 0.0), axis=-1, keepdims=True)
    holds_label = jnp.any(is_label, axis=-1, keepdims=True)
    tops, all_others, label_logits = exchange(
        [jnp.where(shard.present, top, -jnp.inf), others, jnp.where(holds_label, label_logit, -jnp.inf)],
        shard.axis_name,
    )
    highest = jnp.max(tops, axis=0)
    others = jnp.sum(all_others * jnp.exp(tops - highest[None]), axis=0)
    label_logit = jnp.max(label_logits, axis=0) - highest
    label_weight = jnp.exp(label_logit)
    normalizer = label_weight + others
    log_normalizer = jnp.log(normalizer)
    likely = label_logit > -1.0
    value = jnp.where(likely, jnp.log1p(others / jnp.where(likely, label_weight, 1.0)), log_normalizer - label_logit)
    share = jnp.where(shard.present, jnp.exp(top - highest), 0.0) / normalizer
    gradient = jnp.where(is_label, -others / normalizer, weights * share)
    known = ((labels >= 0) & (labels < shard.vocab_size))[:, None]
    return LabelTerms(
        cross_entropy=jnp.where(known, value, jnp.nan),
        cross_entropy_gradient=jnp.where(known, gradient, jnp.nan),
        log_normalizer=highest + log_normalizer,
        probabilities=weights * share,
    )
