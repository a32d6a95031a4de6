"""A chain as rows of text, for the table that `run --check` prints and for the report."""

from __future__ import annotations

from typing import Any, assert_never

from jaxdistill.config.chain import Chain, ChainStage
from jaxdistill.config.loss_schema import (
    AttentionKLTerm,
    AttentionMSETerm,
    ContrastiveTerm,
    CorrelationTerm,
    CosineTerm,
    CrossEntropyTerm,
    DecoupledTerm,
    DivergenceTerm,
    EmbeddingTerm,
    FeatureTermConfig,
    HiddenStateTerm,
    JensenShannonTerm,
    LayeredTermConfig,
    Layers,
    LogitMSETerm,
    PatientTerm,
    ProjectableTermConfig,
    RelationTerm,
    Schedule,
    SimilarityTerm,
    SkewedKLTerm,
    TAIDTerm,
    TermConfig,
    TotalVariationTerm,
    ZLossTerm,
)
from jaxdistill.config.model_schema import DeriveConfig, StudentConfig
from jaxdistill.config.numbers import readable
from jaxdistill.config.schema import TrainConfig
from jaxdistill.config.shapes import student_shape

_DIVERGENCES = {"forward_kl": "KL", "reverse_kl": "reverse KL", "soft_cross_entropy": "soft CE"}


def describe(chain: Chain) -> list[dict[str, str]]:
    """One row a stage, in the order they run: key, teachers, student, loss, length, batch, learning_rate."""
    return [
        {
            "key": stage.key,
            "teachers": _teachers(stage),
            "student": _student(stage) + _several(stage),
            "loss": (f"{stage.phase}: " if stage.phase else "") + loss_formula(stage.terms),
            "length": _length(stage.config.train),
            "batch": str(stage.config.train.batch_size),
            "learning_rate": _number(stage.config.train.learning_rate),
        }
        for stage in chain.stages
    ]


def loss_formula(terms: tuple[TermConfig, ...]) -> str:
    """The weighted sum as text: `0.7·T²·KL(T=2) + 0.3·CE`; schedules as `1→0.5`, layers as they were written."""
    return " + ".join(
        ("" if term.weight == 1 else f"{_scheduled(term.weight, '({})')}·") + _term(term) for term in terms
    )


def _term(term: TermConfig) -> str:
    match term:
        case CrossEntropyTerm():
            return f"CE(smoothing={_number(term.label_smoothing)})" if term.label_smoothing else "CE"
        case DivergenceTerm():
            return f"{_squared(term)}{_DIVERGENCES[term.type]}({_temperature(term)})"
        case JensenShannonTerm():
            return f"{_squared(term)}JSD(β={_number(term.beta)}, {_temperature(term)})"
        case SkewedKLTerm():
            return f"{_squared(term)}skewed KL(skew={_number(term.skew)}, {_temperature(term)})"
        case TAIDTerm():
            return f"{_squared(term)}TAID(progress={_scheduled(term.progress)}, {_temperature(term)})"
        case DecoupledTerm():
            weights = f"{_number(term.target_weight)}:{_number(term.other_weight)}"
            return f"{_squared(term)}DKD({weights}, {_temperature(term)})"
        case CorrelationTerm():
            return f"DIST({_number(term.inter_weight)}:{_number(term.intra_weight)}, {_temperature(term)})"
        case TotalVariationTerm():
            return f"TV({_temperature(term)})"
        case LogitMSETerm():
            return "MSE(logits)"
        case ZLossTerm():
            return "z²"
        case _:
            return _feature_term(term)


def _feature_term(term: FeatureTermConfig) -> str:
    match term:
        case HiddenStateTerm():
            return _over_layers(term, f"MSE(hidden{_projected(term)}, {_layers(term.layers)})")
        case EmbeddingTerm():
            return f"MSE(embeddings{_projected(term)})"
        case CosineTerm():
            return f"cosine(last hidden{_projected(term)})"
        case PatientTerm():
            projected = f"states{_projected(term)}, " if _projected(term) else ""
            return _over_layers(term, f"patient({projected}{_layers(term.layers)})")
        case AttentionMSETerm():
            return _over_layers(term, f"MSE(attention scores, {_layers(term.layers)})")
        case AttentionKLTerm():
            return _over_layers(term, f"KL(attention, {_layers(term.layers)})")
        case RelationTerm():
            heads = f"{term.relation_heads} heads, " if term.relation_heads else ""
            return _over_layers(term, f"KL({'+'.join(term.relations)} relations, {heads}{_layers(term.layers)})")
        case SimilarityTerm():
            return _over_layers(term, f"similarity({_layers(term.layers)})")
        case ContrastiveTerm():
            return f"contrastive({term.pooling}{_projected(term)}, τ={_scheduled(term.temperature)})"
    assert_never(term)


def _projected(term: ProjectableTermConfig) -> str:
    """`·W` where the student's states are projected: one matrix, or W_i for each pair of layers."""
    return {"none": "", "shared": "·W", "per_pair": "·Wᵢ"}[term.projection]


def _over_layers(term: LayeredTermConfig, text: str) -> str:
    """With a Σ if the term adds its layers up."""
    return f"Σ {text}" if term.reduce == "sum" else text


def _layers(layers: Layers) -> str:
    """Symbolic as written, pairs as `layer 2←4`; negative numbers count from the end."""
    if isinstance(layers, str):
        return f"{layers} layers"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(f'{ours}←{theirs}' for ours, theirs in layers)}"


def _scheduled(value: float | Schedule, form: str = "{}") -> str:
    """A number, or `1→0.5` in `form` (the cosine as `1⤳0.5`, steps as `1|0.5|0`)."""
    if not isinstance(value, Schedule):
        return _number(value)
    sign = {"linear": "→", "cosine": "⤳", "steps": "|"}[value.schedule]
    return form.format(sign.join(map(_number, value.extremes)))


def _length(train: TrainConfig) -> str:
    if train.epochs is None:
        return f"{train.steps} step{'' if train.steps == 1 else 's'}"
    return f"{_number(train.epochs)} epoch{'' if train.epochs == 1 else 's'}"


def _temperature(term: Any) -> str:
    return f"T={_scheduled(term.temperature)}"


def _squared(term: Any) -> str:
    """T² is 1 at T=1 and then not worth a sign."""
    return "" if term.temperature == 1 else "T²·"


def _number(value: float | None) -> str:
    return f"{value:.6g}"


def _teachers(stage: ChainStage) -> str:
    teachers = stage.teachers
    if stage.config.teacher_choice == "confidence":
        return "most confident of " + ", ".join(teacher.label for teacher in teachers)
    if len({teacher.weight for teacher in teachers}) > 1:
        return " + ".join(f"{_number(teacher.weight)}·{teacher.label}" for teacher in teachers)
    return " + ".join(teacher.label for teacher in teachers) or "labels only"


def _student(stage: ChainStage) -> str:
    student: StudentConfig = stage.config.student
    given = student.pretrained or student.asset
    if stage.begins is not None:
        return f"{given or _shape_or_derived(student)}, from {stage.begins}"
    if given:
        return given
    text = _shape_or_derived(student)
    start = student.warm_start
    if start is None or stage.warm_start_teacher is None:
        return text
    layers = list(start.layers) if isinstance(start.layers, tuple) else start.layers
    copied = [f"layers {layers}"] if start.layers is not None else []
    copied += [f"width by {start.width}"] if start.width else []
    copied += [f"embeddings {start.embeddings}"] if start.embeddings else []
    return f"{text}, {' and '.join(copied)} from {stage.warm_start_teacher.label}"


def _several(stage: ChainStage) -> str:
    """How many students are trained together, and of a search in how many rounds."""
    if stage.search is not None:
        rounds = len(stage.search.rounds)
        return f" × {stage.search.trials}, searched in {rounds} round{'' if rounds == 1 else 's'}"
    return f" × {len(stage.variants)}" if stage.variants else ""


def _shape_or_derived(student: StudentConfig) -> str:
    return _derived(student.derive) if student.derive is not None else _shape(student)


def _shape(student: StudentConfig) -> str:
    shape = student_shape(student, "student")
    text = f"{student.architecture} L{shape.num_hidden_layers}/H{shape.hidden_size}"
    return f"{text}/P{shape.projections}" if shape.projections else text


def _derived(derive: DeriveConfig) -> str:
    """What is known before the teacher's size is: how far down the student goes."""
    steps = "" if derive.rungs == 1 else f"1/{derive.rungs} of the way to "
    return f"derived, {steps}{readable(derive.parameters)}"
