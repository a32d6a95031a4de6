"""Which student layer learns from which teacher layer, once both depths are known."""

from __future__ import annotations

from collections.abc import Sequence

from jaxdistill.config.loss_schema import (
    LAST_LAYERS,
    AttentionKLTerm,
    AttentionMSETerm,
    ContrastiveTerm,
    CosineTerm,
    EmbeddingTerm,
    FeatureTermConfig,
    Layers,
    RelationTerm,
    TermConfig,
)
from jaxdistill.errors import ConfigError

Pairs = tuple[tuple[int, int], ...]
"""(student layer, teacher layer), counted from 1; 0 is the embeddings' output."""


def resolve_layers(layers: Layers, student_depth: int, teacher_depth: int, *, lowest: int = 0) -> Pairs:
    """The pairs that `layers` means for models of so many layers.

    Args:
      layers: `uniform` (i·L_t/L_s for each student layer i, rounded, ties up), `skip` (the same without the last),
        `last` (all but the student's last, from as many just before the teacher's last), `middle` (of each, of an even
        number the lower one), or pairs, whose negative numbers count from the end.
      student_depth, teacher_depth: L_s and L_t.
      lowest: 1 where the embeddings' output, layer 0, will not do.

    Raises:
      ConfigError: a layer that a model does not have, or no pair at all.
    """
    if not isinstance(layers, str):
        depths = (("student", student_depth), ("teacher", teacher_depth))
        return tuple((_layer(s, *depths[0], lowest), _layer(t, *depths[1], lowest)) for s, t in layers)
    if layers == "middle":
        return (((student_depth + 1) // 2, (teacher_depth + 1) // 2),)
    if student_depth > teacher_depth:
        raise ConfigError(
            f"layers: {layers} maps a student to a teacher of at least its depth, but the student has {student_depth} "
            f"layers and the teacher {teacher_depth}; write pairs [student layer, teacher layer]"
        )
    # whole numbers, so that ties are exact
    uniform = [(i, (2 * i * teacher_depth + student_depth) // (2 * student_depth)) for i in range(1, student_depth + 1)]
    if layers == "uniform":
        return tuple(uniform)
    if student_depth == 1:
        raise ConfigError(f"layers: {layers} leaves out the last layer, and the student has one; write [[-1, -1]]")
    if layers == "skip":
        return tuple(uniform[:-1])
    return tuple((i, teacher_depth - student_depth + i) for i in range(1, student_depth))


def term_pairs(config: FeatureTermConfig, student_depth: int, teacher_depth: int) -> Pairs:
    """The pairs of layers that a term compares."""
    match config:
        case EmbeddingTerm():
            return ((0, 0),)
        case CosineTerm() | ContrastiveTerm():
            return resolve_layers(LAST_LAYERS, student_depth, teacher_depth)
        case AttentionMSETerm() | AttentionKLTerm() | RelationTerm():
            return resolve_layers(config.layers, student_depth, teacher_depth, lowest=1)
        case _:
            return resolve_layers(config.layers, student_depth, teacher_depth)


def describe_layers(terms: Sequence[TermConfig], depths: Sequence[int]) -> list[str]:
    """One line a term and teacher that maps layers: `hidden_state_mse: 1←2, 2←4`.

    depths: the student's, then each teacher's.
    """
    student, *teachers = depths
    lines = []
    for term in terms:
        for index, teacher in enumerate(teachers if isinstance(term, FeatureTermConfig) else ()):
            assert isinstance(term, FeatureTermConfig)
            pairs = ", ".join(f"{ours}←{theirs}" for ours, theirs in term_pairs(term, student, teacher))
            whose = f" (teacher {index + 1})" if len(teachers) > 1 else ""
            lines.append(f"{term.type}{whose}: {pairs}")
    return lines


def _layer(layer: int, whose: str, depth: int, lowest: int) -> int:
    """A layer counted from the start."""
    counted = depth + 1 + layer if layer < 0 else layer
    if lowest <= counted <= depth and layer >= -depth:
        return counted
    embeddings = " (0 is the embeddings' output)" if lowest == 0 else " (0, the embeddings' output, has no attention)"
    raise ConfigError(
        f"layers: the {whose} has {depth} layers, and {layer} is none of them; expected {lowest} to {depth}"
        f"{embeddings}, or -{depth} to -1 from the end"
    )
