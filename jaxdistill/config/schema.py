"""What may be written in a configuration: frozen dataclasses, validated by pydantic.

Nothing here computes: `load.py` turns YAML and overrides into a `Run`, `chain.py` turns a `Run` into a `Chain`.
Field names are the field's own (Hugging Face's for model shapes); the docstring of each class says what each means.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from jaxdistill.config.data_schema import DataConfig
from jaxdistill.config.loss_schema import LossConfig
from jaxdistill.config.model_schema import LadderConfig, StudentConfig, TeacherConfig
from jaxdistill.config.numbers import STRICT, Fraction, Integer, NonNegativeFloat, Number, Positive, PositiveFloat, Seed

PREVIOUS = "previous"
"""What `teacher:` means when it is left out: the stage written just before."""


@dataclass(frozen=True)
class ParallelConfig:
    """Devices: `jit` over a mesh (`data` × `fsdp` × `tensor`, −1 = whatever is left) or `pmap` over all of them.

    data: each device has the whole model and a share of the batch. fsdp: a share of the batch and of every parameter.
    tensor: a share of every layer's heads, channels and of the vocabulary. At most one of them is −1.
    teacher: how a teacher's parameters are laid out: like the student's (`same`), whole on every device (`replicated`),
    or over one axis only (`fsdp`, `tensor`).
    """

    __pydantic_config__ = STRICT
    strategy: Literal["jit", "pmap"] = "jit"
    data: Annotated[Integer, Field(ge=-1)] = -1
    fsdp: Annotated[Integer, Field(ge=-1)] = 1
    tensor: Annotated[Integer, Field(ge=-1)] = 1
    teacher: Literal["same", "replicated", "fsdp", "tensor"] = "same"


@dataclass(frozen=True)
class PrecisionConfig:
    """dtype of the parameters and of the arithmetic; losses, softmax and layer norms are always float32.

    teacher: dtype in which a teacher's parameters are kept (left out: bfloat16 if that is the arithmetic's); `int8` and
    `fp8` quantise the kernels of its layers, and on accelerators their inputs (extra `quant`).
    max_drift: mean KL in nats from the teacher as it was, on a batch of validation data, from which on an 8-bit teacher
    is refused.
    """

    __pydantic_config__ = STRICT
    params: Literal["float32"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"
    teacher: Literal["float32", "bfloat16", "int8", "fp8"] | None = None
    max_drift: PositiveFloat = 0.01


@dataclass(frozen=True)
class LoggingConfig:
    """Where curves go besides `metrics.jsonl`: TensorBoard files, and a W&B project if one is named."""

    __pydantic_config__ = STRICT
    tensorboard: bool = True
    wandb: str | None = None


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one stage: AdamW, no decay on biases and norms.

    epochs or steps: exactly one. batch_size: global examples per update; accumulate splits it into so many
    micro-batches. warmup: a share of the steps (< 1) or a number of steps. max_grad_norm: null = no clipping.
    max_skipped: stop after so many non-finite updates in a row. moment: dtype of AdamW's first moment.
    remat: what of each layer the backward pass keeps: all (`none`), its input (`full`), products with weights (`dots`),
    or the outputs of attention and feed-forward (`names`); the less it keeps, the more it computes again.
    steps_per_dispatch: how many steps the device is sent at once (never across a log line, an evaluation or a
    checkpoint), or `auto`: several where a step is so short that the host would be in its way.
    """

    __pydantic_config__ = STRICT
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
    moment: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots", "names"] = "none"
    steps_per_dispatch: Literal["auto"] | Positive = "auto"


@dataclass(frozen=True)
class EvaluateConfig:
    """every: evaluate on validation each so many steps (null: once an epoch, and always at the end)."""

    __pydantic_config__ = STRICT
    every: Positive | None = None
    batch_size: Positive = 128


@dataclass(frozen=True)
class CheckpointConfig:
    """every: save each so many steps (null: whenever validation runs); keep: how many of the newest stay.

    best: the validation metric whose best checkpoint is kept besides and handed on; `last` hands on the last one
    (left out: accuracy; perplexity for causal_lm, f1 for token_classification and question_answering, for masked_lm
    loss, or last where only features are learned).
    """

    __pydantic_config__ = STRICT
    every: Positive | None = None
    keep: Positive = 2
    best: (
        Literal["accuracy", "f1", "precision", "recall", "exact_match", "loss", "kl", "agreement", "perplexity", "last"]
        | None
    ) = None


@dataclass(frozen=True)
class RangeConfig:
    """Any number from low to high; log: as likely in each decade as in any other."""

    __pydantic_config__ = STRICT
    low: Number
    high: Number
    log: bool = False


@dataclass(frozen=True)
class SweepConfig:
    """Train every combination of these numbers in one compiled step, which runs the teacher once for all of them.

    temperature: of the distillation terms. kd_weight: of the one distillation term; cross-entropy has 1 − kd_weight.
    learning_rate: the schedule's largest. seed: draws the parameters and the dropout; every student sees the stage's
    batches in the stage's order. Validation chooses the student that is handed on.

    trials: search instead, by so many students, whose numbers optuna proposes (extra `search`): in a range, or among
    those listed. together: how many of them are one compiled step (left out: 4); what came of them decides where the
    next ones are tried.
    """

    __pydantic_config__ = STRICT
    temperature: tuple[PositiveFloat, ...] | RangeConfig = ()
    kd_weight: tuple[Annotated[Number, Field(ge=0, le=1)], ...] | RangeConfig = ()
    learning_rate: tuple[PositiveFloat, ...] | RangeConfig = ()
    seed: tuple[Seed, ...] = ()
    trials: Positive | None = None
    together: Positive | None = None


@dataclass(frozen=True)
class RepeatConfig:
    """Train the stage once per seed; mean ± standard deviation are reported and the first seed is handed on."""

    __pydantic_config__ = STRICT
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]


TeacherCache = Literal["off", "memory", "disk"]
"""Whether a teacher runs in every step, or once: its logits kept in memory for the run, or on disk for any run."""


@dataclass(frozen=True)
class DiskCacheConfig:
    """What `teacher_cache: disk` keeps, and where.

    directory: left out, `teacher_cache` in the run directory; one that several runs name, they share. top_k: of a
    language model, the most probable tokens kept at every position. temperatures: those at which its normaliser is kept
    besides the temperatures of the stages' own losses.
    """

    __pydantic_config__ = STRICT
    directory: str | None = None
    top_k: Positive = 64
    temperatures: tuple[PositiveFloat, ...] = ()


TeacherChoice = Literal["average", "confidence"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: a student, its teachers (left out: the previous stage; null: labels alone) and how it is trained.

    ladder: instead of one student, several of falling size between the teacher's and the one given (`config.ladder`);
    `student` then holds at most the architecture and a warm start, and may be left out.
    sweep: instead of one student, several of the same shape that are trained together, or a search (`SweepConfig`).
    teacher_choice: what terms on logits make of several teachers: the weighted average of their probabilities, or at
    each example (of a language model, each token) the teacher that is most confident, by its highest probability.
    Terms on layers average the teachers either way.
    fused: for causal_lm and masked_lm, whether loss and gradients are formed from hidden states in chunks of tokens, so
    that nothing of the size tokens × vocabulary exists (`on`), from whole logits (`off`), or whichever is expected to
    be faster (`auto`: fused from 256 tokens a micro-batch and device on; of masked_lm only masked ones count).
    """

    __pydantic_config__ = STRICT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    student: StudentConfig = field(default_factory=StudentConfig)
    train: TrainConfig
    teacher: str | TeacherConfig | tuple[TeacherConfig | str, ...] | None = PREVIOUS
    loss: LossConfig | None = None
    data: dict[str, Any] | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    repeat: RepeatConfig | None = None
    sweep: SweepConfig | None = None
    teacher_cache: TeacherCache | None = None
    teacher_choice: TeacherChoice = "average"
    fused: Literal["auto", "on", "off"] = "auto"
    ladder: LadderConfig | None = None


@dataclass(frozen=True)
class Run:
    """A whole run. tokenizer: directory, hub id or null (the first teacher's, else the pretrained student's own)."""

    __pydantic_config__ = STRICT
    name: str
    data: DataConfig
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    seed: Seed = 0
    output_dir: str | None = None
    tokenizer: str | None = None
    teacher_cache: TeacherCache = "off"
    disk_cache: DiskCacheConfig = field(default_factory=DiskCacheConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
