"""What may be written in a configuration: frozen dataclasses, validated by pydantic.

Nothing here computes: `load.py` turns YAML and overrides into a `Run`, `chain.py` turns a `Run` into a `Chain`.
Field names are the field's own (Hugging Face's for model shapes); the docstring of each class says what each means.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _not_a_bool(value: Any) -> Any:
    """Python's True is the integer 1, so pydantic would read `steps: true` as one step."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_bool", "Input should be a number")
    return value


Integer = Annotated[int, BeforeValidator(_not_a_bool)]
Number = Annotated[float, BeforeValidator(_not_a_bool)]
Positive = Annotated[Integer, Field(gt=0, lt=2**31)]  # counts and sizes are int32 on the device
NonNegative = Annotated[Integer, Field(ge=0)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]  # what every random generator takes
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegativeFloat = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]

PREVIOUS = "previous"
"""What `teacher:` means when it is left out: the stage written just before."""

SOURCES = ("train", "validation", "test")
"""The splits of a `DataConfig`."""

DATA_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
"""Extensions of the files that rows are read from."""

ASSET_SPLITS = {"minilm-l6": (), "sentiment": SOURCES}
"""Named assets, and the splits of those that are data sets; a model has none."""


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from: exactly one of a local file, a hub data set or a named asset.

    path: csv, tsv, json, jsonl, parquet or arrow file. hub: hub id, with `config` (subset) and `split`.
    asset: name from `jaxdistill fetch`, with `split`. limit: read only the first so many rows.
    """

    __pydantic_config__ = _STRICT
    path: str | None = None
    hub: str | None = None
    asset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: Positive | None = None


@dataclass(frozen=True)
class UnlabelledConfig(SourceConfig):
    """More text for the teachers to label: a source of which only the text is read.

    text: its text columns, as many as `data.text` has (default: those). vocabulary: true, instead of a path, a hub id
    or an asset: every whole word that the student's tokenizer knows, one a row.
    """

    __pydantic_config__ = _STRICT
    text: tuple[str, ...] | None = None
    vocabulary: bool = False


@dataclass(frozen=True)
class AugmentConfig:
    """Variants of the training text for the teachers to label (arXiv:1903.12136, arXiv:1909.10351).

    copies: variants of each row. mask, replace: probability that a word becomes the mask token, or another word of the
    training text. ngram: probability that only one to five consecutive words are kept.
    """

    __pydantic_config__ = _STRICT
    copies: Positive = 1
    mask: Fraction = 0.05
    replace: Fraction = 0.1
    ngram: Annotated[Number, Field(ge=0, le=1)] = 0.25
    seed: NonNegative = 0


@dataclass(frozen=True)
class DataConfig:
    """Data of a run or, written in a stage, of that stage (only the keys written there differ).

    text: one column, or two for a pair. max_length: sequences are cut to so many tokens; left out, the models' own
    positions are the limit and a longer sequence is an error unless `truncate` is true. label_names: names of the
    labels in the order of their integers (default: the teacher's, or the values found).
    unlabelled: text without labels that stages with a teacher train on besides `train` (distillation terms count it,
    label terms do not); a text that is also in validation or test is left out.
    augment: variants of the training text, likewise without labels.
    validation_share: share of train carved off by hash when `validation` is left out.
    shuffle_window: batches whose examples are grouped by length together (`bucketed`).
    on_bad_row: `error`, or `skip` (counted and reported).
    """

    __pydantic_config__ = _STRICT
    task: Literal["classification"] = "classification"
    train: SourceConfig | None = None
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    unlabelled: tuple[UnlabelledConfig, ...] = ()
    augment: AugmentConfig | None = None
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] = ("text",)
    label: str = "label"
    label_names: tuple[str, ...] | None = None
    max_length: Annotated[Integer, Field(ge=3)] | None = None
    truncate: bool | None = None
    batching: Literal["padded", "bucketed"] = "bucketed"
    shuffle_window: Positive = 64
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class ParallelConfig:
    """Devices: `jit` over a mesh (`data` × `fsdp` × `tensor`, −1 = whatever is left) or `pmap` over all of them."""

    __pydantic_config__ = _STRICT
    strategy: Literal["jit", "pmap"] = "jit"
    data: Annotated[Integer, Field(ge=-1)] = -1
    fsdp: Literal[1] = 1
    tensor: Literal[1] = 1


@dataclass(frozen=True)
class PrecisionConfig:
    """dtype of the parameters and of the arithmetic; losses, softmax and layer norms are always float32."""

    __pydantic_config__ = _STRICT
    params: Literal["float32"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class LoggingConfig:
    """Where curves go besides `metrics.jsonl`: TensorBoard files, and a W&B project if one is named."""

    __pydantic_config__ = _STRICT
    tensorboard: bool = True
    wandb: str | None = None


# --- loss terms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossEntropyTerm:
    """Cross-entropy with the labels."""

    __pydantic_config__ = _STRICT
    type: Literal["cross_entropy"]
    weight: NonNegativeFloat = 1.0
    label_smoothing: Fraction = 0.0


@dataclass(frozen=True)
class DivergenceTerm:
    """T² times a divergence between the teacher's and the student's distributions at temperature T."""

    __pydantic_config__ = _STRICT
    type: Literal["forward_kl", "reverse_kl", "soft_cross_entropy"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0


@dataclass(frozen=True)
class JensenShannonTerm:
    """T² times the generalised Jensen-Shannon divergence; beta 0 means forward KL, 1 reverse KL."""

    __pydantic_config__ = _STRICT
    type: Literal["jensen_shannon"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0
    beta: Annotated[Number, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class TotalVariationTerm:
    """Total variation distance at temperature T (not multiplied by T²)."""

    __pydantic_config__ = _STRICT
    type: Literal["total_variation"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0


@dataclass(frozen=True)
class LogitMSETerm:
    """Mean squared error of the raw logits (no temperature)."""

    __pydantic_config__ = _STRICT
    type: Literal["logit_mse"]
    weight: NonNegativeFloat = 1.0


TermConfig = Annotated[
    CrossEntropyTerm | DivergenceTerm | JensenShannonTerm | TotalVariationTerm | LogitMSETerm,
    Field(discriminator="type"),
]


@dataclass(frozen=True)
class HintonPreset:
    """alpha·T²·KL(teacher ‖ student) + (1−alpha)·CE (arXiv:1503.02531); `txtai` is the same with T=1, alpha=1."""

    __pydantic_config__ = _STRICT
    preset: Literal["hinton", "txtai"]
    temperature: PositiveFloat | None = None
    alpha: Annotated[Number, Field(ge=0, le=1)] | None = None


LossConfig = tuple[TermConfig, ...] | HintonPreset

# --- teachers and students -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherConfig:
    """One teacher: exactly one of an earlier stage, a Hugging Face directory or hub id, or an asset; and its weight."""

    __pydantic_config__ = _STRICT
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

    __pydantic_config__ = _STRICT
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

    __pydantic_config__ = _STRICT
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


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one stage: AdamW, no decay on biases and norms.

    epochs or steps: exactly one. batch_size: global examples per update; accumulate splits it into so many
    micro-batches. warmup: a share of the steps (< 1) or a number of steps. max_grad_norm: null = no clipping.
    max_skipped: stop after so many non-finite updates in a row.
    """

    __pydantic_config__ = _STRICT
    epochs: PositiveFloat | None = None
    steps: Positive | None = None
    batch_size: Positive = 32
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: NonNegativeFloat = 0.06
    weight_decay: NonNegativeFloat = 0.01
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat | None = 1.0
    accumulate: Positive = 1
    log_every: Positive = 50
    max_skipped: Positive = 10


@dataclass(frozen=True)
class EvaluateConfig:
    """every: evaluate on validation each so many steps (null: once an epoch, and always at the end)."""

    __pydantic_config__ = _STRICT
    every: Positive | None = None
    batch_size: Positive = 128


@dataclass(frozen=True)
class CheckpointConfig:
    """every: save each so many steps (null: whenever validation runs); keep: how many of the newest stay.

    best: the validation metric whose best checkpoint is kept besides and handed on; `last` hands on the last one.
    """

    __pydantic_config__ = _STRICT
    every: Positive | None = None
    keep: Positive = 2
    best: Literal["accuracy", "f1", "loss", "kl", "agreement", "last"] = "accuracy"


@dataclass(frozen=True)
class RepeatConfig:
    """Train the stage once per seed; mean ± standard deviation are reported and the first seed is handed on."""

    __pydantic_config__ = _STRICT
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]


TeacherCache = Literal["off", "memory"]


@dataclass(frozen=True)
class StageConfig:
    """One stage: a student, its teachers (left out: the previous stage; null: labels alone) and how it is trained."""

    __pydantic_config__ = _STRICT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    student: StudentConfig
    train: TrainConfig
    teacher: str | TeacherConfig | tuple[TeacherConfig | str, ...] | None = PREVIOUS
    loss: LossConfig | None = None
    data: dict[str, Any] | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    repeat: RepeatConfig | None = None
    teacher_cache: TeacherCache | None = None


@dataclass(frozen=True)
class Run:
    """A whole run. tokenizer: directory, hub id or null (the first teacher's, else the pretrained student's own)."""

    __pydantic_config__ = _STRICT
    name: str
    data: DataConfig
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    seed: Seed = 0
    output_dir: str | None = None
    tokenizer: str | None = None
    teacher_cache: TeacherCache = "off"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
