"""Terms on what lies between a model's input and its logits: hidden states and attention of mapped layers.

Each is the mean or the sum over its pairs of layers, and with several teachers their weighted mean, every teacher with
pairs of its own. What a token of padding holds has no effect; tokens of packed documents meet only those they may
attend to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    LayeredTermConfig,
    PatientTerm,
    ProjectableTermConfig,
    Reduce,
    RelationTerm,
    SimilarityTerm,
)
from jaxdistill.distill.layer_maps import Pairs, term_pairs
from jaxdistill.distill.positions import attended, packed, real_examples, summaries, tokens
from jaxdistill.distill.projections import Projection, project, teacher_name
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
    reduce: Reduce = "mean"
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

    def _pairs(self, student: Signals, teachers: Sequence[Signals]) -> Iterator[_Pair]:
        """What is compared with what, of every teacher."""
        ours, first = student[self.signal], _FIRST_LAYER[self.signal]
        for index, (weight, teacher, pairs) in enumerate(zip(self.teacher_weights, teachers, self.pairs, strict=True)):
            share = weight / sum(self.teacher_weights) / (len(pairs) if self.reduce == "mean" else 1)
            for position, (ours_at, theirs_at) in enumerate(pairs):
                yield _Pair(ours[ours_at - first], teacher[self.signal][theirs_at - first], share, index, position)


@dataclass(frozen=True)
class _Pair:
    """Signals of a student's and of a teacher's layer; `share` weighs their comparison in the term.

    teacher, position: which teacher it is, and which of the pairs with it.
    """

    ours: Array
    theirs: Array
    share: float
    teacher: int
    position: int


def _total(pairs: Iterable[_Pair], compare: Callable[[Array, Array], Scalar]) -> Scalar:
    """`compare` of every pair, by their shares."""
    return sum((pair.share * compare(pair.ours, pair.theirs) for pair in pairs), start=jnp.float32(0))


@dataclass(frozen=True, kw_only=True)
class _OfVectors(_OfLayers):
    """What terms on vectors of hidden states share.

    projections: with each teacher, what the student's are multiplied by; none where the widths are equal.
    """

    projections: tuple[Projection, ...] = ()
    signal: Literal["hidden_states"] = "hidden_states"

    def _projected(
        self,
        student: Signals,
        teachers: Sequence[Signals],
        where: Bool[Array, "*B"],
        select: Callable[[Array], Array] = lambda states: states,
    ) -> Iterator[_Pair]:
        """The pairs of vectors that `select` takes from hidden states, the student's projected where `where` counts."""
        for pair in self._pairs(student, teachers):
            ours, theirs = select(pair.ours), select(pair.theirs)
            if self.projections:
                kernels = student["projections"][self.name][teacher_name(pair.teacher)]
                shared = self.projections[pair.teacher].count == 1
                ours = project(ours, kernels[0 if shared else pair.position], where)
            yield replace(pair, ours=ours, theirs=theirs)


@dataclass(frozen=True, kw_only=True)
class States(_OfVectors):
    """A distance between hidden states, over tokens."""

    distance: Literal["hidden_state_mse", "cosine"]

    def where(self, batch: Batch) -> Bool[Array, "B S"]:
        return tokens(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where = self.where(batch)
        distance = losses.cosine_distance if self.distance == "cosine" else losses.hidden_state_mse

        def compare(ours: Array, theirs: Array) -> Scalar:
            return losses.masked_sum_count(distance(ours, theirs, where=where), where)[0]

        return _total(self._projected(student, teachers, where), compare)


@dataclass(frozen=True, kw_only=True)
class Patient(_OfVectors):
    """Squared distance of normalised states: an encoder's first token, a decoder's last, of each packed document."""

    def where(self, batch: Batch) -> Bool[Array, "*B"]:
        return summaries(batch) if packed(batch) else real_examples(batch)

    def total(self, student: Signals, teachers: Sequence[Signals], batch: Batch) -> Scalar:
        where, every = self.where(batch), packed(batch)

        def compare(ours: Array, theirs: Array) -> Scalar:
            return losses.masked_sum_count(losses.patient_loss(ours, theirs, where=where), where)[0]

        pairs = self._projected(student, teachers, where, lambda states: states if every else states[:, 0])
        return _total(pairs, compare)


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

        return _total(self._pairs(student, teachers), compare)


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

        return _total(self._pairs(student, teachers), compare)


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

        return _rows(self.where(batch)) * _total(self._pairs(student, teachers), compare)


@dataclass(frozen=True, kw_only=True)
class Contrastive(_OfVectors):
    """Each row's state against the teacher's of all rows; a part of a batch sees only its own rows."""

    temperature: Scheduled
    pooling: Literal["mean", "first"]
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
            return losses.contrastive(ours, theirs, temperature=number(self.temperature), where=where)

        return _rows(where) * _total(self._projected(student, teachers, where, state), compare)


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
    widths: Sequence[int],
) -> States | Patient | Attention | Relations | Similarity | Contrastive:
    """The term a configuration describes.

    depths, widths: layers, and size of the hidden states, of the student, then of each teacher; widths only if the term
    has projections.

    Raises:
      ConfigError: layers that a model does not have, or depths or widths that are needed and not given.
    """
    _check_known(config, "reads layers", "depths", depths, teachers=len(teacher_weights))
    pairs = tuple(term_pairs(config, depths[0], depth) for depth in depths[1:])
    common: dict[str, Any] = {"name": name, "weight": weight, "teacher_weights": teacher_weights, "pairs": pairs}
    if isinstance(config, LayeredTermConfig):
        common["reduce"] = config.reduce
    if isinstance(config, ProjectableTermConfig) and config.projection != "none":
        _check_known(config, "has projections", "widths", widths, teachers=len(teacher_weights))
        counts = [1 if config.projection == "shared" else len(each) for each in pairs]
        common["projections"] = tuple(map(Projection, counts, [widths[0]] * len(pairs), widths[1:]))
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


def _check_known(config: FeatureTermConfig, what: str, key: str, sizes: Sequence[int], *, teachers: int) -> None:
    """The sizes of the student and of every teacher are there, if there is a teacher."""
    if teachers and len(sizes) != 1 + teachers:
        raise ConfigError(
            f"loss: {config.type} {what}, for which the {key} of the student and of {teachers} teacher(s) must be "
            f"known; got {list(sizes)}"
        )
