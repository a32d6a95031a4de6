"""A chain as rows of text, for the table that `run --check` prints and for the report."""

from __future__ import annotations

from jaxdistill.config.chain import Chain, ChainStage
from jaxdistill.config.loss_schema import (
    CrossEntropyTerm,
    DivergenceTerm,
    JensenShannonTerm,
    LogitMSETerm,
    TermConfig,
    TotalVariationTerm,
    ZLossTerm,
)
from jaxdistill.config.model_schema import DeriveConfig, StudentConfig
from jaxdistill.config.numbers import readable
from jaxdistill.config.schema import TrainConfig
from jaxdistill.config.shapes import student_shape
from jaxdistill.config.teachers import ResolvedTeacher

_DIVERGENCES = {"forward_kl": "KL", "reverse_kl": "reverse KL", "soft_cross_entropy": "soft CE"}


def describe(chain: Chain) -> list[dict[str, str]]:
    """One row a stage, in the order they run: key, teachers, student, loss, length, batch, learning_rate."""
    return [
        {
            "key": stage.key,
            "teachers": _teachers(stage.teachers),
            "student": _student(stage),
            "loss": loss_formula(stage.terms),
            "length": _length(stage.config.train),
            "batch": str(stage.config.train.batch_size),
            "learning_rate": _number(stage.config.train.learning_rate),
        }
        for stage in chain.stages
    ]


def loss_formula(terms: tuple[TermConfig, ...]) -> str:
    """The weighted sum as text: `0.7·T²·KL(T=2) + 0.3·CE`."""
    return " + ".join(("" if term.weight == 1 else f"{_number(term.weight)}·") + _term(term) for term in terms)


def _term(term: TermConfig) -> str:
    match term:
        case CrossEntropyTerm():
            return f"CE(smoothing={_number(term.label_smoothing)})" if term.label_smoothing else "CE"
        case DivergenceTerm():
            return f"{_squared(term.temperature)}{_DIVERGENCES[term.type]}(T={_number(term.temperature)})"
        case JensenShannonTerm():
            return f"{_squared(term.temperature)}JSD(β={_number(term.beta)}, T={_number(term.temperature)})"
        case TotalVariationTerm():
            return f"TV(T={_number(term.temperature)})"
        case LogitMSETerm():
            return "MSE(logits)"
        case ZLossTerm():
            return "z²"


def _length(train: TrainConfig) -> str:
    if train.epochs is None:
        return f"{train.steps} step{'' if train.steps == 1 else 's'}"
    return f"{_number(train.epochs)} epoch{'' if train.epochs == 1 else 's'}"


def _squared(temperature: float) -> str:
    """T² is 1 at T=1 and then not worth a sign."""
    return "" if temperature == 1 else "T²·"


def _number(value: float | None) -> str:
    return f"{value:.6g}"


def _teachers(teachers: tuple[ResolvedTeacher, ...]) -> str:
    if len({teacher.weight for teacher in teachers}) > 1:
        return " + ".join(f"{_number(teacher.weight)}·{teacher.label}" for teacher in teachers)
    return " + ".join(teacher.label for teacher in teachers) or "labels only"


def _student(stage: ChainStage) -> str:
    student: StudentConfig = stage.config.student
    if student.pretrained is not None or student.asset is not None:
        return student.pretrained or student.asset or ""
    text = _derived(student.derive) if student.derive is not None else _shape(student)
    start = student.warm_start
    if start is None or stage.warm_start_teacher is None:
        return text
    layers = list(start.layers) if isinstance(start.layers, tuple) else start.layers
    copied = [f"layers {layers}"] if start.layers is not None else []
    copied += [f"width by {start.width}"] if start.width else []
    copied += [f"embeddings {start.embeddings}"] if start.embeddings else []
    return f"{text}, {' and '.join(copied)} from {stage.warm_start_teacher.label}"


def _shape(student: StudentConfig) -> str:
    shape = student_shape(student, "student")
    text = f"{student.architecture} L{shape.num_hidden_layers}/H{shape.hidden_size}"
    return f"{text}/P{shape.projections}" if shape.projections else text


def _derived(derive: DeriveConfig) -> str:
    """What is known before the teacher's size is: how far down the student goes."""
    steps = "" if derive.rungs == 1 else f"1/{derive.rungs} of the way to "
    return f"derived, {steps}{readable(derive.parameters)}"
