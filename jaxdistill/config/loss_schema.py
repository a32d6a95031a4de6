"""What may be written about a loss: weighted terms, or a published recipe by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jaxdistill.config.numbers import STRICT, Fraction, Integer, Number, Positive, PositiveFloat
from jaxdistill.config.schedule_schema import Progress, Schedule, Temperature, Weight

# --- terms on labels and logits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossEntropyTerm:
    """Cross-entropy with the labels."""

    __pydantic_config__ = STRICT
    type: Literal["cross_entropy"]
    weight: Weight = 1.0
    label_smoothing: Fraction = 0.0


@dataclass(frozen=True)
class DivergenceTerm:
    """T² times a divergence between the teacher's and the student's distributions at temperature T."""

    __pydantic_config__ = STRICT
    type: Literal["forward_kl", "reverse_kl", "soft_cross_entropy"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0


@dataclass(frozen=True)
class JensenShannonTerm:
    """T² times the generalised Jensen-Shannon divergence; beta 0 means forward KL, 1 reverse KL."""

    __pydantic_config__ = STRICT
    type: Literal["jensen_shannon"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0
    beta: Annotated[Number, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class SkewedKLTerm:
    """T² times KL(teacher ‖ skew·teacher + (1−skew)·student) (DistiLLM, arXiv:2402.03898)."""

    __pydantic_config__ = STRICT
    type: Literal["skewed_kl"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0
    skew: Fraction = 0.1


_THROUGHOUT = Schedule("linear", start=0.0, end=1.0)


@dataclass(frozen=True)
class TAIDTerm:
    """T² times KL to a target that moves from the student's logits to the teacher's (TAID, arXiv:2501.16937).

    progress: how far it has moved, 0 to 1; left out, the share of the stage's steps that are done.
    """

    __pydantic_config__ = STRICT
    type: Literal["taid"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0
    progress: Progress = _THROUGHOUT


@dataclass(frozen=True)
class DecoupledTerm:
    """T² times the label's part and the other classes' part of the KL, each with its weight (DKD, arXiv:2203.08679)."""

    __pydantic_config__ = STRICT
    type: Literal["dkd"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0
    target_weight: Annotated[Number, Field(ge=0)] = 1.0
    other_weight: Annotated[Number, Field(ge=0)] = 8.0


@dataclass(frozen=True)
class CorrelationTerm:
    """Correlations between classes and, over the batch, between examples (DIST, arXiv:2205.10536).

    The second couples the examples of a batch, which therefore may not be split into micro-batches.
    """

    __pydantic_config__ = STRICT
    type: Literal["dist"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0
    inter_weight: Annotated[Number, Field(ge=0)] = 1.0
    intra_weight: Annotated[Number, Field(ge=0)] = 1.0


@dataclass(frozen=True)
class TotalVariationTerm:
    """Total variation distance at temperature T (not multiplied by T²)."""

    __pydantic_config__ = STRICT
    type: Literal["total_variation"]
    weight: Weight = 1.0
    temperature: Temperature = 1.0


@dataclass(frozen=True)
class LogitMSETerm:
    """Mean squared error of the raw logits (no temperature)."""

    __pydantic_config__ = STRICT
    type: Literal["logit_mse"]
    weight: Weight = 1.0


@dataclass(frozen=True)
class ZLossTerm:
    """Square of the student's log-normaliser, which keeps logits from drifting (arXiv:2204.02311)."""

    __pydantic_config__ = STRICT
    type: Literal["z_loss"]
    weight: Weight = 1e-4


# --- terms on what lies between: hidden states, attention -------------------------------------------------------------

LayerPair = Annotated[tuple[Integer, ...], Field(min_length=2, max_length=2)]
Layers = Literal["uniform", "skip", "last", "middle"] | Annotated[tuple[LayerPair, ...], Field(min_length=1)]
"""Which student layer learns from which teacher layer; layers count from 1, and 0 is the embeddings' output.

`uniform`: student layer i from i·L_t/L_s, rounded, ties up. `skip`: the same without the last. `last`: all but the
student's last from as many just before the teacher's last. `middle`: the middle layer of each, of an even number the
lower one. Or pairs [student layer, teacher layer], where negative numbers count from the end: [-1, -1] are the last of
both.
"""
LAST_LAYERS: tuple[LayerPair, ...] = ((-1, -1),)

Reduce = Literal["mean", "sum"]
"""Over the pairs of layers: a term is their mean, or their sum."""

Projected = Literal["none", "per_pair", "shared"]
"""Whether the student's states are multiplied by learned matrices [D_s, D_t] before they are compared.

They then need not have the teacher's width. There is a matrix for each pair of layers, or one that all pairs of the
term share; with several teachers, for each of them. They are trained beside the student, and no part of it.
"""


@dataclass(frozen=True)
class HiddenStateTerm:
    """Mean squared error of hidden states, over tokens (FitNets, arXiv:1412.6550)."""

    __pydantic_config__ = STRICT
    type: Literal["hidden_state_mse"]
    weight: Weight = 1.0
    layers: Layers = "uniform"
    projection: Projected = "none"
    reduce: Reduce = "mean"


@dataclass(frozen=True)
class EmbeddingTerm:
    """Mean squared error of the embedding layers' outputs (TinyBERT, arXiv:1909.10351)."""

    __pydantic_config__ = STRICT
    type: Literal["embedding_mse"]
    weight: Weight = 1.0
    projection: Projected = "none"


@dataclass(frozen=True)
class CosineTerm:
    """1 − cosine of the last hidden states, over tokens (DistilBERT, arXiv:1910.01108)."""

    __pydantic_config__ = STRICT
    type: Literal["cosine"]
    weight: Weight = 1.0
    projection: Projected = "none"


@dataclass(frozen=True)
class PatientTerm:
    """Squared distance of normalised states (PKD, arXiv:1908.09355).

    Those of an encoder's first token, or of the last token of each of a decoder's documents.
    """

    __pydantic_config__ = STRICT
    type: Literal["patient"]
    weight: Weight = 1.0
    layers: Layers = "skip"
    projection: Projected = "none"
    reduce: Reduce = "mean"


@dataclass(frozen=True)
class AttentionMSETerm:
    """Mean squared error of attention scores before their softmax, of as many heads (TinyBERT, arXiv:1909.10351)."""

    __pydantic_config__ = STRICT
    type: Literal["attention_mse"]
    weight: Weight = 1.0
    layers: Layers = "uniform"
    reduce: Reduce = "mean"


@dataclass(frozen=True)
class AttentionKLTerm:
    """KL of attention distributions, of as many heads (MiniLM, arXiv:2002.10957; MobileBERT, arXiv:2004.02984)."""

    __pydantic_config__ = STRICT
    type: Literal["attention_kl"]
    weight: Weight = 1.0
    layers: Layers = LAST_LAYERS
    reduce: Reduce = "mean"


@dataclass(frozen=True)
class RelationTerm:
    """KL of the relations softmax(X·Xᵀ/√d) between tokens, X the queries, keys or values (MiniLM, arXiv:2012.15828).

    relations are added up. relation_heads: into how many heads both models' vectors are split (left out: as many as
    the teacher's layer has); widths and numbers of attention heads may differ.
    """

    __pydantic_config__ = STRICT
    type: Literal["relation_kl"]
    weight: Weight = 1.0
    relations: Annotated[tuple[Literal["query", "key", "value"], ...], Field(min_length=1)] = ("value",)
    relation_heads: Positive | None = None
    layers: Layers = LAST_LAYERS
    reduce: Reduce = "mean"


@dataclass(frozen=True)
class SimilarityTerm:
    """Similarity-preserving: inner products between the examples of a batch, of any widths (arXiv:1907.09682).

    An example is one row of the batch, with the states of all its tokens. It couples the examples of a batch, which
    therefore may not be split into micro-batches.
    """

    __pydantic_config__ = STRICT
    type: Literal["similarity_preserving"]
    weight: Weight = 1.0
    layers: Layers = LAST_LAYERS
    reduce: Reduce = "mean"


@dataclass(frozen=True)
class ContrastiveTerm:
    """Contrast with the batch: each student state is to find its own teacher's (CRD's in-batch form, arXiv:1910.10699).

    State: the mean of a row's last hidden states, or the `first` token's. It couples the examples of a
    batch, which therefore may not be split into micro-batches.
    """

    __pydantic_config__ = STRICT
    type: Literal["contrastive"]
    weight: Weight = 1.0
    temperature: Temperature = 0.1
    pooling: Literal["mean", "first"] = "mean"
    projection: Projected = "none"


LayeredTermConfig = HiddenStateTerm | PatientTerm | AttentionMSETerm | AttentionKLTerm | RelationTerm | SimilarityTerm
FeatureTermConfig = LayeredTermConfig | EmbeddingTerm | CosineTerm | ContrastiveTerm
"""Terms that read what lies between a model's input and its logits."""
ProjectableTermConfig = HiddenStateTerm | EmbeddingTerm | CosineTerm | PatientTerm | ContrastiveTerm
"""Terms that compare vectors of one width, or project the student's to it."""
TeacherlessTermConfig = CrossEntropyTerm | ZLossTerm
"""Terms that compare the student with no teacher."""
CoupledTermConfig = CorrelationTerm | SimilarityTerm | ContrastiveTerm
"""Terms that are no sum over examples: they compare the examples of a batch with one another."""

AnyTermConfig = (
    CrossEntropyTerm
    | DivergenceTerm
    | JensenShannonTerm
    | SkewedKLTerm
    | TAIDTerm
    | DecoupledTerm
    | CorrelationTerm
    | TotalVariationTerm
    | LogitMSETerm
    | ZLossTerm
    | HiddenStateTerm
    | EmbeddingTerm
    | CosineTerm
    | PatientTerm
    | AttentionMSETerm
    | AttentionKLTerm
    | RelationTerm
    | SimilarityTerm
    | ContrastiveTerm
)
TermConfig = Annotated[AnyTermConfig, Field(discriminator="type")]


# --- recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PresetConfig:
    """A published recipe (see `recipes.PRESETS`), and the numbers of it that it lets one change."""

    __pydantic_config__ = STRICT
    preset: Literal["hinton", "txtai", "distilbert", "fitnets", "pkd", "tinybert", "minilm", "minilm_v2", "llama"]
    temperature: PositiveFloat | None = None
    alpha: Annotated[Number, Field(ge=0, le=1)] | None = None
    beta: PositiveFloat | None = None
    layers: Layers | None = None
    relation_heads: Positive | None = None
    projection: Projected | None = None
    share: PositiveFloat | None = None


@dataclass(frozen=True)
class PhaseConfig:
    """A part of a stage with a loss of its own; the next phase begins with the student that this one leaves.

    phase: its name. terms: weighted terms, or a preset of one phase. share: of the stage's epochs or steps (left out:
    the phases without one divide evenly what the others leave). learning_rate: left out, the stage's. Schedules, the
    learning rate's too, begin anew with each phase, and so does the optimizer.
    """

    __pydantic_config__ = STRICT
    type: Literal["phase"]
    phase: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    terms: tuple[TermConfig, ...] | PresetConfig
    share: PositiveFloat | None = None
    learning_rate: PositiveFloat | None = None


def _phase_by_its_name(written: Any) -> Any:
    """A mapping with `phase` needs no type besides."""
    if isinstance(written, Mapping) and "phase" in written and "type" not in written:
        return {**written, "type": "phase"}
    return written


_Item = Annotated[
    Annotated[AnyTermConfig | PhaseConfig, Field(discriminator="type")], BeforeValidator(_phase_by_its_name)
]

LossConfig = tuple[_Item, ...] | PresetConfig
"""Weighted terms, phases of them, or a preset."""
