"""What may be written about teachers and students."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
    factorised table; encoders only). Left out: not copied. width: for decoders narrower than their teacher,
    `importance` keeps the channels, heads and feed-forward units that matter most on a few batches of the training
    data, of every layer in `layers` and of the embeddings. from_teacher: a stage or given teacher to copy from when it
    is not the stage's own first teacher (a control without a teacher can start from the same point).
    """

    __pydantic_config__ = STRICT
    layers: Literal["uniform", "first", "last"] | tuple[NonNegative, ...] | None = None
    embeddings: Literal["copy", "svd"] | None = None
    width: Literal["importance"] | None = None
    from_teacher: TeacherConfig | str | None = None


@dataclass(frozen=True)
class DeriveConfig:
    """Let the sizes of a decoder follow from its teacher's and a number of parameters (`models.derive`).

    parameters: how many the student should have, embeddings included. rungs: with more than one, the student goes
    only the first of so many equal steps (of the logarithm) from its teacher's size down to `parameters`; a ladder
    writes it. key_heads_multiple_of: so that a tensor axis of that many devices divides the heads.
    """

    __pydantic_config__ = STRICT
    parameters: PositiveFloat
    rungs: Positive = 1
    key_heads_multiple_of: Positive = 1


@dataclass(frozen=True)
class LadderConfig:
    """Make the stage several: each student the next one's teacher, sizes falling by one factor down to `to`.

    to: parameters of the last student. stages: how many. key_heads_multiple_of: as for `derive`. The stages are called
    NAME-1, NAME-2, …, NAME.
    """

    __pydantic_config__ = STRICT
    to: PositiveFloat
    stages: Annotated[Integer, Field(ge=1, le=100)]
    key_heads_multiple_of: Positive = 1


@dataclass(frozen=True)
class StudentConfig:
    """The student: pretrained (`pretrained` directory or hub id, or `asset`), or a fresh one of an `architecture`.

    Shape fields carry Hugging Face's names and are only for fresh students, except the dropouts, which also override
    a pretrained encoder's. Encoders: bert, bert_hash, distilbert (BERT's names for all). Decoders: llama, mistral,
    qwen2, qwen3. vocab_size: left out, the first teacher's, else the tokenizer's.

    projections: width of BertHash's factorised embedding (default 5). Left out, a decoder's positions, RoPE, tying of
    embeddings and special tokens are its first teacher's, and if it is of the same architecture also hidden_act,
    rms_norm_eps, biases and window; everything else, and all without a teacher, has Hugging Face's defaults.
    sliding_window switches a Qwen's window on. derive: sizes that follow from the teacher's; architecture is then the
    teacher's and may be left out.
    """

    __pydantic_config__ = STRICT
    pretrained: str | None = None
    asset: str | None = None
    revision: str | None = None
    architecture: Literal["bert", "bert_hash", "distilbert", "llama", "mistral", "qwen2", "qwen3"] | None = None
    derive: DeriveConfig | None = None
    vocab_size: Positive | None = None
    hidden_size: Positive | None = None
    num_hidden_layers: Positive | None = None
    num_attention_heads: Positive | None = None
    intermediate_size: Positive | None = None
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"] | None = None
    max_position_embeddings: Annotated[Integer, Field(ge=3, lt=2**31)] | None = None  # [CLS], a token, [SEP]
    initializer_range: PositiveFloat | None = None
    warm_start: WarmStartConfig | None = None
    # encoders
    hidden_dropout_prob: Fraction | None = None
    attention_probs_dropout_prob: Fraction | None = None
    classifier_dropout: Fraction | None = None
    type_vocab_size: Positive | None = None
    layer_norm_eps: PositiveFloat | None = None
    projections: Positive | None = None
    # decoders
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    rms_norm_eps: PositiveFloat | None = None
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: Positive | None = None
    max_window_layers: NonNegative | None = None
