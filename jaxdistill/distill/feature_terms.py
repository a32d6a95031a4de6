"""Terms on what lies between a model's input and its logits: hidden states and attention of mapped layers.

Each is the mean over its pairs of layers, and with several teachers their weighted mean, every teacher with pairs of
its own. What a token of padding holds has no effect; tokens of packed documents meet only those they may attend to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import jax.numpy as jnp

from jaxdistill import losses
from jaxdistill.config.loss_schema import (
    AttentionKLTerm,
    AttentionMSETerm,
    ContrastiveTerm,
    CosineTerm,
    EmbeddingTerm,
    FeatureTermConfig,
    HiddenStateTerm,
    PatientTerm,
    RelationTerm,
    SimilarityTerm,
)
from jaxdistill.distill.layer_maps import Pairs, term_pairs
from jaxdistill.distill.positions import attended, document_ends, packed, real_examples, tokens
from jaxdistill.distill.schedules import Scheduled, number
from jaxdistill.distill.signals import Wanted
from jaxdistill.errors import ConfigError
from jaxdistill.typing import Array, Batch, Bool, Float, Scalar, Signals

_FIRST_LAYER = {"hidden_states": 0, "attention_scores": 1, "qkv": 1}
"""What `Model.apply` calls layer 0 of a signal: the embeddings' output, or the first layer."""


@dataclass(frozen=True, kw_only=True)
class _OfLayers:
    """What terms on one signal of mapped layers share; `pairs` are those with each teacher."""

    name: str
    weight: Scheduled
    teacher_weights: tuple[float, ...]
    pairs: tuple[Pairs, ...]
    signal: Literal["hidden_states", "attention_scores", "qkv"]
    group: Literal["kd"] = "kd"
    coupled: bool = False

    @property
    def student_outputs(self) -> Wanted:
        return ((self.signal, self._layers(s for pairs in self.pairs for s, _ in pairs)),)

    @property
    def teacher_outputs(self) -> tuple[Wanted, ...]:
        return tuple(((self.signal, self._layers(t for _, t in pairs)),) for pairs in self.pairs)

    def _layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """As the model counts them."""
        return tuple(sorted({layer - _FIRST_LAYER[self.signal] for layer in layers}))

    def _mean(self, student: Signals, teachers: Sequence[Signals], compare: Callable[[Array, Array], Scalar]) -> Scalar:
        """`compare` of each pair of layers, averaged over pairs and teachers."""
        ours, first = student[self.signal], _FIRST_LAYER[self.signal]
        total = jnp.float32(0)
        for weight, teacher, pairs in zip(self.teacher_weights, teachers, self.pairs, strict=True):
            share = weight / sum(self.teacher_weights) / len(pairs)
            for ours_at, theirs_at in pairs:
                total += share * compare(ours[ours_at - first], teacher[self.signal][theirs_at - first])
        return total


@dataclass(frozen=True, kw_only=True)
class States(_OfLayers):
    """A distance between hidden states of one width, over tokens."""

    distance: Literal["hidden_state_mse", "cosine"]
    signal: Literal["hidden_states"] = "hidden_states"

    def where(self, batch: Batch) -> Bool[Array, "B S"]:
        return tokens(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        distance = losses.cosine_distance if self.distance == "cosine" else losses.hidden_state_mse

        def compare(ours: Array, theirs: Array) -> Scalar:
            return losses.masked_sum_count(distance(ours, theirs, where=where), where)[0]

        return self._mean(student, teachers, compare)


@dataclass(frozen=True, kw_only=True)
class Patient(_OfLayers):
    """Squared distance of normalised states: an encoder's first token, or the last of each packed document."""

    signal: Literal["hidden_states"] = "hidden_states"

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return document_ends(batch) if packed(batch) else real_examples(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, every = self.where(batch), packed(batch)

        def compare(ours: Array, theirs: Array) -> Scalar:
            pair = (ours, theirs) if every else (ours[:, 0], theirs[:, 0])
            return losses.masked_sum_count(losses.patient_loss(*pair, where=where), where)[0]

        return self._mean(student, teachers, compare)


@dataclass(frozen=True, kw_only=True)
class Attention(_OfLayers):
    """A distance between attention scores (before their softmax) of as many heads, over the tokens that attend."""

    distance: Literal["attention_mse", "attention_kl"]
    signal: Literal["attention_scores"] = "attention_scores"

    def where(self, batch: Batch) -> Bool[Array, "B S"]:
        return tokens(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, allowed = self.where(batch), attended(batch)
        distance = losses.attention_kl if self.distance == "attention_kl" else losses.attention_mse

        def compare(ours: Array, theirs: Array) -> Scalar:
            # models give scores before any mask
            pair = (x if allowed is None else jnp.where(allowed[:, None], x, -jnp.inf) for x in (ours, theirs))
            return losses.masked_sum_count(distance(*pair, where=where), where)[0]

        return self._mean(student, teachers, compare)


_QKV = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Relations(_OfLayers):
    """KL of the relations between tokens, those of `relations` added up, over tokens.

    heads: into how many both models' vectors are split; None: as many as the teacher's layer has.
    """

    relations: tuple[Literal["query", "key", "value"], ...]
    heads: int | None = None
    signal: Literal["qkv"] = "qkv"

    def where(self, batch: Batch) -> Bool[Array, "B S"]:
        return tokens(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, allowed = self.where(batch), attended(batch)

        def compare(ours: Array, theirs: Array) -> Scalar:
            heads = self.heads or theirs.shape[-2]
            total = jnp.float32(0)
            for kind in self.relations:
                # [3, B, S, N, H]: a layer's own heads side by side
                pair = (qkv[_QKV.index(kind)].reshape(*where.shape, -1) for qkv in (ours, theirs))
                values = losses.relation_kl(*pair, num_relation_heads=heads, attended=allowed, where=where)
                total += losses.masked_sum_count(values, where)[0]
            return total

        return self._mean(student, teachers, compare)


@dataclass(frozen=True, kw_only=True)
class Similarity(_OfLayers):
    """Inner products between the rows of a batch, of any widths; a part of a batch sees only its own rows."""

    signal: Literal["hidden_states"] = "hidden_states"
    coupled: bool = True

    def where(self, batch: Batch) -> Bool[Array, " B"]:
        return jnp.any(tokens(batch), axis=-1)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = tokens(batch)

        def compare(ours: Array, theirs: Array) -> Scalar:
            return losses.similarity_preserving(ours, theirs, where=where)

        return _rows(self.where(batch)) * self._mean(student, teachers, compare)


@dataclass(frozen=True, kw_only=True)
class Contrastive(_OfLayers):
    """Each row's state against the teacher's of all rows; a part of a batch sees only its own rows."""

    temperature: Scheduled
    pooling: Literal["mean", "first"]
    signal: Literal["hidden_states"] = "hidden_states"
    coupled: bool = True

    def where(self, batch: Batch) -> Bool[Array, " B"]:
        return jnp.any(tokens(batch), axis=-1)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, present = self.where(batch), tokens(batch)

        def state(states: Array) -> Float[Array, "B D"]:
            if self.pooling == "first":
                return states[:, 0]
            wide = jnp.where(present[..., None], states.astype(jnp.float32), 0.0)
            count = jnp.maximum(jnp.sum(present, axis=-1, keepdims=True, dtype=jnp.int32), 1)
            return jnp.sum(wide, axis=1) / count.astype(jnp.float32)

        def compare(ours: Array, theirs: Array) -> Scalar:
            return losses.contrastive(state(ours), state(theirs), temperature=number(self.temperature), where=where)

        return _rows(where) * self._mean(student, teachers, compare)


def _rows(where: Bool[Array, " B"]) -> Scalar:
    return jnp.sum(where, dtype=jnp.int32).astype(jnp.float32)


def make_feature_term(
    config: FeatureTermConfig,
    *,
    name: str,
    weight: Scheduled,
    temperature: Scheduled,
    teacher_weights: tuple[float, ...],
    depths: Sequence[int],
) -> States | Patient | Attention | Relations | Similarity | Contrastive:
    """The term a configuration describes; depths: layers of the student, then of each teacher.

    Raises:
      ConfigError: layers that a model does not have, or depths that are not given.
    """
    if teacher_weights and len(depths) != 1 + len(teacher_weights):
        raise ConfigError(
            f"loss: {config.type} reads layers, for which the depths of the student and of "
            f"{len(teacher_weights)} teacher(s) must be known; got {list(depths)}"
        )
    pairs = tuple(term_pairs(config, depths[0], depth) for depth in depths[1:])
    common: dict[str, Any] = {"name": name, "weight": weight, "teacher_weights": teacher_weights, "pairs": pairs}
    match config:
        case HiddenStateTerm() | EmbeddingTerm():
            return States(**common, distance="hidden_state_mse")
        case CosineTerm():
            return States(**common, distance="cosine")
        case PatientTerm():
            return Patient(**common)
        case AttentionMSETerm() | AttentionKLTerm():
            return Attention(**common, distance=config.type)
        case RelationTerm():
            return Relations(**common, relations=config.relations, heads=config.relation_heads)
        case SimilarityTerm():
            return Similarity(**common)
        case ContrastiveTerm():
            return Contrastive(**common, temperature=temperature, pooling=config.pooling)
    assert_never(config)
