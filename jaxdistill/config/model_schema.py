"""What may be written about teachers and students."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from jaxdistill.config.numbers import STRICT, Fraction, Integer, NonNegative, Positive, PositiveFloat


@dataclass(frozen=True)
class TeacherConfig:
    """One teacher: exactly one of an earlier stage, a Hugging Face directory or hub id, or an asset; and its weight."""

    __pydantic_config__ = STRICT
    stage: str | None = None
    pretrained: str | None = None
    asset: str | None = None
    revision: str | None = None
    weight: PositiveFloat = 1.0


@dataclass(frozen=True)
class WarmStartConfig:
    """Copy layers and embeddings from the stage's first teacher.

    layers: `uniform`, `first`, `last`, or teacher layer indices, one per student layer. embeddings: `copy` (equal
    widths), `svd` (truncated SVD of the teacher's centred word embedding, scaled to unit standard deviation for a
    factorised table). Left out: not copied. from_teacher: a stage or given teacher to copy from when it is not the
    stage's own first teacher (a control without a teacher can start from the same point).
    """

    __pydantic_config__ = STRICT
    layers: Literal["uniform", "first", "last"] | tuple[NonNegative, ...] | None = None
    embeddings: Literal["copy", "svd"] | None = None
    from_teacher: TeacherConfig | str | None = None


@dataclass(frozen=True)
class StudentConfig:
    """The student: pretrained (`pretrained` directory or hub id, or `asset`), or a fresh one of an `architecture`.

    Shape fields carry Hugging Face's BERT names whatever the architecture and are only for fresh students, except
    the dropouts, which also override a pretrained one's. vocab_size: left out, the first teacher's, else the
    tokenizer's. projections: width of BertHash's factorised embedding (default 5).
    """

    __pydantic_config__ = STRICT
    pretrained: str | None = None
    asset: str | None = None
    revision: str | None = None
    architecture: Literal["bert", "bert_hash", "distilbert"] | None = None
    vocab_size: Positive | None = None
    hidden_size: Positive | None = None
    num_hidden_layers: Positive | None = None
    num_attention_heads: Positive | None = None
    intermediate_size: Positive | None = None
    hidden_act: Literal["gelu", "gelu_new", "relu"] | None = None
    hidden_dropout_prob: Fraction | None = None
    attention_probs_dropout_prob: Fraction | None = None
    classifier_dropout: Fraction | None = None
    max_position_embeddings: Annotated[Integer, Field(ge=3, lt=2**31)] | None = None  # [CLS], a token, [SEP]
    type_vocab_size: Positive | None = None
    layer_norm_eps: PositiveFloat | None = None
    initializer_range: PositiveFloat | None = None
    projections: Positive | None = None
    warm_start: WarmStartConfig | None = None
