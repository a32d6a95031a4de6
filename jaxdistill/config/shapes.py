"""Model shapes as far as they are known without loading anything, and what contradicts them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill.config.data_schema import DataConfig
from jaxdistill.config.families import DROPOUTS, SHAPE_FIELDS, family, field_problems, task_problem
from jaxdistill.config.model_schema import StudentConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem
from jaxdistill.config.schema import Run, StageConfig
from jaxdistill.config.teachers import ResolvedTeacher, StageTeachers


@dataclass(frozen=True)
class Shape:
    """What is known of a model: `name` says which in messages, None is unknown."""

    name: str
    architecture: str | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    positions: int | None = None
    projections: int | None = None
    vocab_size: int | None = None


_DECODER_SIZES = {
    "llama": {"intermediate_size": 11008},
    "mistral": {"intermediate_size": 14336, "num_key_value_heads": 8},
    "qwen2": {"intermediate_size": 22016},
    "qwen3": {"intermediate_size": 22016, "head_dim": 128},
}
"""Hugging Face's defaults where they differ between architectures; all have 32 layers of 32 heads, 4,096 wide."""


def student_shape(student: StudentConfig, name: str) -> Shape:
    """The shape a student will have as far as it says: Hugging Face's defaults where a fresh one's sizes are left out.

    What a teacher decides is unknown: everything about a derived student, a decoder's positions.
    """
    if student.derive is not None:
        return Shape(name, architecture=student.architecture)
    if student.architecture is None:
        return directory_shape(student.pretrained, name) if student.pretrained else Shape(name)
    if family(student.architecture) == "decoder":
        return _decoder_shape(student, student.architecture, name)
    return Shape(
        name=name,
        architecture=student.architecture,
        hidden_size=student.hidden_size or 768,
        num_hidden_layers=student.num_hidden_layers or (6 if student.architecture == "distilbert" else 12),
        num_attention_heads=student.num_attention_heads or 12,
        intermediate_size=student.intermediate_size or 3072,
        positions=student.max_position_embeddings or 512,
        projections=(student.projections or 5) if student.architecture == "bert_hash" else None,
        vocab_size=student.vocab_size,
    )


def _decoder_shape(student: StudentConfig, architecture: str, name: str) -> Shape:
    defaults = _DECODER_SIZES[architecture]
    width, heads = student.hidden_size or 4096, student.num_attention_heads or 32
    whole = width // heads if width % heads == 0 else None
    stretched = student.rope_parameters is not None or student.rope_scaling is not None
    return Shape(
        name=name,
        architecture=architecture,
        hidden_size=width,
        num_hidden_layers=student.num_hidden_layers or 32,
        num_attention_heads=heads,
        num_key_value_heads=student.num_key_value_heads or defaults.get("num_key_value_heads", heads),
        head_dim=student.head_dim or defaults.get("head_dim", whole),
        intermediate_size=student.intermediate_size or defaults["intermediate_size"],
        positions=None if stretched else student.max_position_embeddings,
        vocab_size=student.vocab_size,
    )


def directory_shape(text: str, name: str) -> Shape:
    """The shape in a local directory's config.json; unknown for a hub id or a file that does not read as one."""
    try:
        config = json.loads((Path(text).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return Shape(name)
    if not isinstance(config, dict):
        return Shape(name)
    if family(config.get("model_type")) == "decoder":
        return _decoder_directory(config, name)
    positions = _integer(config, "max_position_embeddings")
    if config.get("model_type") == "roberta" and positions is not None:
        # RoBERTa counts positions from the padding id + 1.
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 1) + 1
    return Shape(
        name=name,
        architecture=config.get("model_type") if isinstance(config.get("model_type"), str) else None,
        hidden_size=_integer(config, "hidden_size", "dim"),
        num_hidden_layers=_integer(config, "num_hidden_layers", "n_layers"),
        num_attention_heads=_integer(config, "num_attention_heads", "n_heads"),
        intermediate_size=_integer(config, "intermediate_size", "hidden_dim"),
        positions=positions,
        projections=_integer(config, "projections"),
        vocab_size=_integer(config, "vocab_size"),
    )


def _decoder_directory(config: dict[str, Any], name: str) -> Shape:
    """A decoder's shape in its config.json; RoPE that stretches positions leaves them unknown here."""
    width, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) in (None, "default", "llama3")
    whole = width // heads if width and heads and width % heads == 0 else None
    return Shape(
        name=name,
        architecture=config["model_type"],
        hidden_size=width,
        num_hidden_layers=_integer(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_integer(config, "num_key_value_heads") or heads,
        head_dim=_integer(config, "head_dim") or whole,
        intermediate_size=_integer(config, "intermediate_size"),
        positions=_integer(config, "max_position_embeddings") if plain else None,
        vocab_size=_integer(config, "vocab_size"),
    )


def _integer(config: dict[str, Any], *names: str) -> int | None:
    """The first of these fields that holds an integer."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def teacher_shape(run: Run, teacher: ResolvedTeacher) -> Shape:
    """The shape of a teacher: its stage's student, or a local directory's."""
    if teacher.stage is not None:
        student = next(stage.student for stage in run.stages if stage.name == teacher.stage)
        return student_shape(student, f"stage '{teacher.stage}'")
    return directory_shape(teacher.pretrained, teacher.pretrained) if teacher.pretrained else Shape(teacher.label)


def student_problems(student: StudentConfig, task: str, path: KeyPath) -> Iterator[Problem]:
    """What is wrong with a student in itself, and for the task."""
    if student == StudentConfig():
        expected = "{pretrained: DIR_OR_HUB_ID} or {architecture: bert, hidden_size: ..., ...}"
        yield Problem(path, f"missing; expected {expected}")
        return
    origins = [key for key in ("pretrained", "asset", "architecture", "derive") if getattr(student, key) is not None]
    if origins == ["architecture", "derive"]:
        origins = ["derive"]
    if len(origins) != 1:
        got = " and ".join(origins) or "none of them"
        yield Problem(path, f"got {got}; expected exactly one of pretrained, asset, architecture, derive")
        return
    if student.revision is not None and student.pretrained is None:
        yield Problem((*path, "revision"), "only a pretrained hub model has revisions; remove it")
    shape = student_shape(student, "student")
    key = "pretrained" if student.pretrained is not None else "architecture"
    if problem := task_problem(shape.architecture, task, student.pretrained or str(shape.architecture)):
        yield Problem((*path, key), problem)
        return
    match origins[0]:
        case "derive":
            yield from _derived_problems(student, task, path)
        case "architecture":
            yield from field_problems(student, path)
            yield from _head_problems(student, shape, path)
        case _:
            yield from _pretrained_problems(student, task, path)


def _pretrained_problems(student: StudentConfig, task: str, path: KeyPath) -> Iterator[Problem]:
    """What a pretrained student has no say in."""
    for key in SHAPE_FIELDS:
        if getattr(student, key) is not None:
            message = f"a pretrained student's {key} is its own; remove it, or give an architecture instead"
            yield Problem((*path, key), message)
    if student.warm_start is not None:
        message = "a pretrained student starts from its own weights; remove warm_start, or give an architecture"
        yield Problem((*path, "warm_start"), message)
    for key in DROPOUTS if task == "causal_lm" else ():
        if getattr(student, key) is not None:
            yield Problem((*path, key), "decoders are trained without dropout; remove it")


def _derived_problems(student: StudentConfig, task: str, path: KeyPath) -> Iterator[Problem]:
    """A derived student's shape is its teacher's to decide."""
    if task != "causal_lm":
        message = f"only decoders are derived, and data.task is {task}; give an architecture and its sizes"
        yield Problem((*path, "derive"), message)
        return
    for key in (*SHAPE_FIELDS, *DROPOUTS):
        if getattr(student, key) is not None:
            message = "derive chooses the shape; remove it, or give an architecture and its sizes instead of derive"
            yield Problem((*path, key), message)


def derive_problems(run: Run, stage: StageConfig, teachers: StageTeachers, path: KeyPath) -> Iterator[Problem]:
    """A derived decoder that has nobody to be derived from."""
    derived = stage.student.derive is not None and run.data.task == "causal_lm"
    if derived and stage.teacher is None and teachers.warm_start is None:
        message = "the stage has no teacher whose sizes could be scaled down; name one, or write the sizes"
        yield Problem((*path, "student", "derive"), message)


def _head_problems(student: StudentConfig, shape: Shape, path: KeyPath) -> Iterator[Problem]:
    """Widths that the heads do not divide, and heads that do not share keys and values evenly."""
    width, heads, shared = shape.hidden_size or 0, shape.num_attention_heads or 1, shape.num_key_value_heads or 1
    decoder = family(shape.architecture) == "decoder"
    if width % heads and shape.head_dim is None:
        sizes = "4096 and 32" if decoder else "768 and 12"
        defaults = "" if student.num_attention_heads and student.hidden_size else f" (defaults: {sizes})"
        message = f"{width} is not divisible by {heads} attention heads{defaults}; expected a multiple of "
        yield Problem((*path, "hidden_size"), message + "num_attention_heads" + (", or head_dim" if decoder else ""))
    if heads % shared:
        default = "" if student.num_key_value_heads else " (the default)"
        message = f"{heads} attention heads cannot share {shared} key and value heads{default} evenly"
        yield Problem((*path, "num_key_value_heads"), f"{message}; expected a divisor of num_attention_heads")
    if shape.head_dim is not None and shape.head_dim % 2:
        key = "hidden_size" if student.head_dim is None else "head_dim"
        message = f"heads of {shape.head_dim} channels; expected an even number, since RoPE rotates pairs of channels"
        yield Problem((*path, key), message)


def teacher_problems(run: Run, teachers: StageTeachers, path: KeyPath) -> Iterator[Problem]:
    """Given teachers of the family that the task has no use for (a stage's student is reported where it is one)."""
    for teacher in (*teachers.teachers, *([teachers.warm_start] if teachers.warm_start else [])):
        if teacher.stage is None:
            shape = teacher_shape(run, teacher)
            if problem := task_problem(shape.architecture, run.data.task, shape.name):
                yield Problem((*path, "teacher"), problem)


def position_problems(
    run: Run, stage: StageConfig, data: DataConfig, teachers: StageTeachers, path: KeyPath
) -> Iterator[Problem]:
    """Models with fewer positions than the stage's `max_length`."""
    if data.max_length is None:
        return
    own = stage.data is not None and "max_length" in stage.data
    limit = f"{'stage data' if own else 'data'}.max_length"
    student = student_shape(stage.student, "student")
    if student.positions is not None and student.positions < data.max_length:
        key: KeyPath = ("student", "max_position_embeddings" if stage.student.pretrained is None else "pretrained")
        message = f"{student.positions} positions; expected at least {limit}, which is {data.max_length}"
        yield Problem((*path, *key), message)
    for teacher in teachers.teachers:
        shape = teacher_shape(run, teacher)
        if teacher.stage is not None and not own:
            continue  # reported where it is a student
        if shape.positions is not None and shape.positions < data.max_length:
            message = (
                f"teacher {shape.name} has {shape.positions} positions; expected at least {limit}, {data.max_length}"
            )
            yield Problem((*path, "teacher"), message)
