"""Whether the models of a stage have what its terms compare, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jaxdistill.config.chain import ChainStage
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
    TermConfig,
)
from jaxdistill.distill.layer_maps import term_pairs
from jaxdistill.distill.schedules import always_zero
from jaxdistill.errors import ConfigError
from jaxdistill.models import LlamaConfig, ModelConfig


def check_terms(
    stage: ChainStage,
    student: ModelConfig,
    teachers: Sequence[ModelConfig],
    *,
    tokenizer_indices: Sequence[int],
    max_length: int,
) -> None:
    """Layers, widths, heads, windows and tokens of student and teachers, as the stage's terms need them.

    Args:
      stage: whose terms and teachers.
      student, teachers: the models' configurations.
      tokenizer_indices: of each teacher, 0 for one that reads the student's tokens.
      max_length: of a sequence.

    Raises:
      ConfigError: all problems, each with the term's path, both sizes, and what to do.
    """
    where = f"stages.{stage.name}.loss"
    if stage.phase is not None:
        where = f"stages.{stage.name.partition('.')[0]}.loss.{stage.phase}"
    written = isinstance(stage.config.loss, tuple)
    problems = []
    for position, term in enumerate(stage.terms):
        if not isinstance(term, FeatureTermConfig) or always_zero(term.weight):
            continue
        path = f"{where}.{position}" if written else where
        for reference, teacher, tokens in zip(stage.teachers, teachers, tokenizer_indices, strict=True):
            found = _problems(term, student, teacher, same_tokens=tokens == 0, max_length=max_length)
            problems += [f"{path}: {term.type} with teacher {reference.label}: {text}" for text in found]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def reads_logits(terms: Sequence[TermConfig]) -> bool:
    """Whether any term that counts trains the student's output layer."""
    return any(not isinstance(term, FeatureTermConfig) and not always_zero(term.weight) for term in terms)


def _problems(
    term: FeatureTermConfig, student: ModelConfig, teacher: ModelConfig, *, same_tokens: bool, max_length: int
) -> Iterator[str]:
    try:
        pairs = term_pairs(term, student.num_hidden_layers, teacher.num_hidden_layers)
    except ConfigError as error:
        yield str(error)
        return
    first = isinstance(term, PatientTerm) or (isinstance(term, ContrastiveTerm) and term.pooling == "first")
    if not same_tokens and not (first and not isinstance(student, LlamaConfig)):
        yield (
            "it compares token by token, but the teacher has another tokenizer; compare logits, or the first token's "
            "states (patient, or contrastive with pooling: first)"
        )
    match term:
        case HiddenStateTerm() | EmbeddingTerm() | CosineTerm() | PatientTerm() | ContrastiveTerm():
            if term.projection == "none":
                yield from _equal("hidden_size", student, teacher)
        case AttentionMSETerm() | AttentionKLTerm():
            yield from _equal("num_attention_heads", student, teacher)
            yield from _windows(student, teacher, pairs, max_length)
        case RelationTerm():
            yield from _relation_heads(term, student, teacher)
            yield from _windows(student, teacher, pairs, max_length)
        case SimilarityTerm():
            return


_ADVICE = {
    "hidden_size": "learn a projection between the two (projection: per_pair, or shared)",
    "num_attention_heads": "use relation_kl, which compares any numbers of heads",
}


def _equal(size: str, student: ModelConfig, teacher: ModelConfig) -> Iterator[str]:
    ours, theirs = getattr(student, size), getattr(teacher, size)
    if ours != theirs:
        yield (
            f"needs one {size} for both, but the student's is {ours} and the teacher's {theirs}; give the student "
            f"{size}: {theirs}, or {_ADVICE[size]}"
        )


def _relation_heads(term: RelationTerm, student: ModelConfig, teacher: ModelConfig) -> Iterator[str]:
    heads = term.relation_heads or teacher.num_attention_heads
    widths = {"student's": _attention_width(student), "teacher's": _attention_width(teacher)}
    if bad := [f"the {whose} {width}" for whose, width in widths.items() if width % heads]:
        whole = [count for count in range(1, min(widths.values()) + 1) if not any(w % count for w in widths.values())]
        yield (
            f"{heads} relation heads do not divide the width of the vectors, {' and '.join(bad)}; "
            f"write relation_heads as one of {', '.join(map(str, whole[-6:]))}"
        )


def _attention_width(config: ModelConfig) -> int:
    """All heads of a layer's queries side by side."""
    size = config.head_dim if isinstance(config, LlamaConfig) else config.head_size
    return config.num_attention_heads * size


def _windows(
    student: ModelConfig, teacher: ModelConfig, pairs: Sequence[tuple[int, int]], max_length: int
) -> Iterator[str]:
    """What lies outside a sliding window is not told apart from what is attended to."""
    layers = {"student": (student, {s for s, _ in pairs}), "teacher": (teacher, {t for _, t in pairs})}
    for whose, (config, own) in layers.items():
        window_of: Callable[[int], int | None] = config.window if isinstance(config, LlamaConfig) else lambda _: None
        windows = [window for layer in sorted(own) if (window := window_of(layer - 1)) and window < max_length]
        if windows:
            yield (
                f"the {whose}'s layers see {windows[0]} tokens at a time, and sequences have {max_length}; map layers "
                f"without a sliding window, or set data.max_length: {windows[0]}"
            )
