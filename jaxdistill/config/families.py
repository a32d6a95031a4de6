"""The two families of models: which architectures each has, and which fields belong to whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from jaxdistill.config.model_schema import StudentConfig
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem

ENCODERS = ("bert", "bert_hash", "distilbert", "roberta")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")

FAMILY_OF_TASK: dict[str, Literal["encoder", "decoder"]] = {
    "classification": "encoder",
    "token_classification": "encoder",
    "question_answering": "encoder",
    "masked_lm": "encoder",
    "causal_lm": "decoder",
}
"""What kind of model a task needs."""

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
"""Fields of an encoder that override a pretrained one's too."""

_QWEN = ("qwen2", "qwen3")
_OWNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(DROPOUTS, ENCODERS),
    "type_vocab_size": ("bert", "bert_hash"),
    "layer_norm_eps": ("bert", "bert_hash"),
    "projections": ("bert_hash",),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"), DECODERS),
    **dict.fromkeys(("rope_theta", "rope_scaling", "rope_parameters"), DECODERS),
    "attention_bias": ("llama", "qwen3"),
    "mlp_bias": ("llama",),
    "sliding_window": ("mistral", *_QWEN),
    "max_window_layers": _QWEN,
}
_SAID_OTHERWISE = {
    ("distilbert", "type_vocab_size"): "distilbert has no token types",
    ("distilbert", "layer_norm_eps"): "distilbert has a fixed layer_norm_eps of 1e-12",
    ("qwen2", "attention_bias"): "qwen2 always has biases of queries, keys and values",
    ("llama", "sliding_window"): "llama has no sliding window (mistral and qwen have)",
}
_INSTEAD = {"layer_norm_eps": "rms_norm_eps", "rms_norm_eps": "layer_norm_eps"}
_NOT_SHAPE = {"pretrained", "asset", "revision", "architecture", "derive", "warm_start"}

SHAPE_FIELDS = tuple(
    field.name for field in dataclasses.fields(StudentConfig) if field.name not in {*_NOT_SHAPE, *DROPOUTS}
)
"""Fields that only a fresh student has a say in."""


def family(architecture: str | None) -> Literal["encoder", "decoder"] | None:
    """What kind of model an architecture is; None if it is not one we build."""
    if architecture in ENCODERS:
        return "encoder"
    return "decoder" if architecture in DECODERS else None


def student_fields(student: StudentConfig) -> dict[str, Any]:
    """A fresh student as `models.config_from_hf` reads it: model_type and the fields that were written."""
    fields = {name: getattr(student, name) for name in (*SHAPE_FIELDS, *DROPOUTS)}
    given = {name: value for name, value in fields.items() if value is not None}
    if student.architecture in _QWEN and student.sliding_window is not None:
        given["use_sliding_window"] = True  # Hugging Face's Qwen has a window, a switch for it, and begins at layer 28
        given.setdefault("max_window_layers", 0)
    return {"model_type": student.architecture, **given}


def field_problems(student: StudentConfig, path: KeyPath) -> Iterator[Problem]:
    """Fields of another architecture than the student's, and activations of the other family."""
    architecture = student.architecture
    for name, owners in _OWNERS.items():
        if getattr(student, name) is not None and architecture not in owners:
            yield Problem((*path, name), _not_its_own(str(architecture), name, owners))
    if student.hidden_act == "silu" and family(architecture) == "encoder":
        yield Problem((*path, "hidden_act"), "got 'silu', which only decoders have; expected gelu, gelu_new or relu")
    if student.max_window_layers is not None and student.sliding_window is None and architecture in _QWEN:
        message = "says where a sliding window begins, and there is none; give sliding_window too, or remove it"
        yield Problem((*path, "max_window_layers"), message)


def _not_its_own(architecture: str, name: str, owners: tuple[str, ...]) -> str:
    if reason := _SAID_OTHERWISE.get((architecture, name)):
        return f"{reason}; remove it"
    if owners == ("bert_hash",):
        return f"only bert_hash has {name}, this is {architecture}; remove it or change architecture"
    families = {family(owner) for owner in owners}
    if family(architecture) not in families:
        instead = f", or give {_INSTEAD[name]}" if name in _INSTEAD else ""
        kind = "decoders" if "decoder" in families else "encoders"
        return f"only {kind} have it, and {architecture} is not one; remove it{instead}"
    return f"only {' and '.join(owners)} have it, this is {architecture}; remove it"


def task_problem(architecture: str | None, task: str, what: str) -> str | None:
    """Why a model of this architecture cannot do the task; None if it can, or nothing is known of it."""
    has, needs = family(architecture), FAMILY_OF_TASK[task]
    if has is None or has == needs:
        return None
    choices = "bert, bert_hash, distilbert" if needs == "encoder" else ", ".join(DECODERS)
    kinds = {"encoder": "an encoder", "decoder": "a decoder"}
    return f"{what} is {kinds[has]}, and data.task {task} needs {kinds[needs]} ({choices})"
