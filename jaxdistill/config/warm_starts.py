"""What contradicts a warm start, as far as models' shapes are known without loading anything."""

from __future__ import annotations

from collections.abc import Iterator

from jaxdistill.config.families import FAMILY_OF_TASK, family
from jaxdistill.config.model_schema import WarmStartConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem
from jaxdistill.config.schema import Run, StageConfig
from jaxdistill.config.shapes import Shape, student_shape, teacher_shape
from jaxdistill.config.teachers import StageTeachers

_WIDTHS = {
    "encoder": ("hidden_size", "intermediate_size", "num_attention_heads"),
    "decoder": ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
}


def warm_start_problems(run: Run, stage: StageConfig, teachers: StageTeachers, path: KeyPath) -> Iterator[Problem]:
    """A warm start that copies nothing, from nobody, or between shapes that do not fit."""
    warm_start, student = stage.student.warm_start, student_shape(stage.student, "student")
    if warm_start is None or stage.student.pretrained is not None or stage.student.asset is not None:
        return
    path = (*path, "student", "warm_start")
    if warm_start.layers is None and warm_start.embeddings is None and warm_start.width is None:
        yield Problem(path, "copies nothing; expected layers, embeddings or both")
    kind = family(student.architecture) or FAMILY_OF_TASK[run.data.task]
    yield from _family_problems(warm_start, kind, path)
    if teachers.warm_start is None:
        if warm_start.from_teacher is None and stage.teacher is None:
            yield Problem(path, "the stage has no teacher to copy from; name one in warm_start.from_teacher")
        return
    teacher = teacher_shape(run, teachers.warm_start)
    if warm_start.layers is not None:
        yield from _depth_problems(warm_start.layers, student, teacher, (*path, "layers"))
        if warm_start.width is None:
            yield from _width_problems(kind, student, teacher, (*path, "layers"))
        elif kind == "decoder":
            yield from _slice_problems(student, teacher, (*path, "width"))
    if warm_start.embeddings is not None:
        yield from _embedding_problems(warm_start, kind, student, teacher, (*path, "embeddings"))


def _family_problems(warm_start: WarmStartConfig, kind: str, path: KeyPath) -> Iterator[Problem]:
    """Ways of starting that only encoders or only decoders have."""
    if warm_start.width is not None and kind == "encoder":
        message = "only decoders are narrowed by importance; remove it, and write embeddings: svd for a narrower table"
        yield Problem((*path, "width"), message)
    elif warm_start.width is not None and warm_start.layers is None:
        yield Problem((*path, "width"), "says how copied layers are narrowed; give layers too")
    if warm_start.embeddings == "svd" and kind == "decoder":
        message = "svd is for encoders; write copy, or for a narrower student layers and width: importance"
        yield Problem((*path, "embeddings"), message)


def _depth_problems(layers: str | tuple[int, ...], student: Shape, teacher: Shape, path: KeyPath) -> Iterator[Problem]:
    own, depth = student.num_hidden_layers, teacher.num_hidden_layers
    if isinstance(layers, tuple):
        if own is not None and len(layers) != own:
            message = f"got {len(layers)} teacher layers; expected one for each of the student's {own}"
            yield Problem(path, message)
        for layer in sorted(set(layers)):
            if depth is not None and layer >= depth:
                message = f"got layer {layer}; expected 0 to {depth - 1}, since {teacher.name} has {depth} layers"
                yield Problem(path, message)
    elif own is not None and depth is not None and own > depth:
        message = f"the student has {own} layers, {teacher.name} only {depth}"
        yield Problem(path, f"{message}; give teacher layer indices to copy some twice")


def _width_problems(kind: str, student: Shape, teacher: Shape, path: KeyPath) -> Iterator[Problem]:
    """Layers that are copied as they are need the same widths."""
    for key in _WIDTHS[kind]:
        own, other = getattr(student, key), getattr(teacher, key)
        if own is not None and other is not None and own != other:
            instead = "leave layers out and start from embeddings: svd"
            if kind == "decoder":
                instead = "leave layers out" if own > other else "add width: importance to keep the most important part"
            message = (
                f"layers cannot be copied between different shapes: the student's {key} is {own}, "
                f"that of {teacher.name} {other}; make them equal, or {instead}"
            )
            yield Problem(path, message)
            return


def _slice_problems(student: Shape, teacher: Shape, path: KeyPath) -> Iterator[Problem]:
    """A student that is no slice of its teacher: wider, or with other heads or groups of heads."""
    for key in _WIDTHS["decoder"]:
        own, other = getattr(student, key), getattr(teacher, key)
        if own is None or other is None:
            continue
        if key == "head_dim" and own != other:
            message = f"the student's heads have {own} channels, those of {teacher.name} {other}, and heads stay whole"
            yield Problem(path, f"{message}; write head_dim: {other} and as many heads as you want")
        elif own > other:
            message = f"the student's {key} is {own}, that of {teacher.name} only {other}"
            yield Problem(path, f"{message}; a slice can only be smaller")
    shared = [_shared(shape) for shape in (student, teacher)]
    if shared[0] is not None and shared[1] is not None and shared[0] > shared[1]:
        message = f"{shared[0]} of the student's query heads share a key head, of {teacher.name} only {shared[1]}"
        yield Problem(path, f"{message}; give the student more num_key_value_heads or fewer num_attention_heads")


def _shared(shape: Shape) -> int | None:
    """Query heads that share a key head."""
    if shape.num_attention_heads is None or shape.num_key_value_heads is None:
        return None
    return shape.num_attention_heads // shape.num_key_value_heads


def _embedding_problems(
    warm_start: WarmStartConfig, kind: str, student: Shape, teacher: Shape, path: KeyPath
) -> Iterator[Problem]:
    if student.vocab_size and teacher.vocab_size and student.vocab_size != teacher.vocab_size:
        message = f"the student has {student.vocab_size} tokens, {teacher.name} {teacher.vocab_size}"
        yield Problem(path, f"{message}; embeddings can only be taken from a model with the same tokenizer")
    if teacher.hidden_size is None or student.hidden_size is None or warm_start.width is not None:
        return
    if warm_start.embeddings == "svd" and kind == "encoder":
        width = student.projections or student.hidden_size
        if width > teacher.hidden_size:
            message = f"the student's word table is {width} wide, {teacher.name} only {teacher.hidden_size}"
            yield Problem(path, f"{message}; svd can only narrow, leave embeddings out")
        return
    if warm_start.embeddings == "svd":
        return
    if teacher.hidden_size != student.hidden_size:
        instead = (
            "embeddings: svd to project them" if kind == "encoder" else "layers and width: importance to slice them"
        )
        message = f"the student is {student.hidden_size} wide, {teacher.name} {teacher.hidden_size}"
        yield Problem(path, f"embeddings cannot be copied: {message}; write {instead}")
    elif teacher.projections != student.projections:
        message = "a factorised (bert_hash) table and a full one, or two of different projections, do not copy"
        yield Problem(path, f"{message}; write embeddings: svd to project the words")
