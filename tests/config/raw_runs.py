"""Plain configurations as YAML would give them, and what is wrong with one."""

from __future__ import annotations

from typing import Any

from jaxdistill.config import run_from_dict
from jaxdistill.errors import ConfigError

BERT = {
    "architecture": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def stage(name: str, **keys: Any) -> dict[str, Any]:
    """A stage with a small BERT student, trained for one epoch."""
    return {"name": name, "student": dict(BERT), "train": {"epochs": 1}} | keys


def run(*stages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A run of these stages; without any, a teacher trained on labels and a student of it."""
    stages = stages or (stage("teacher", teacher=None), stage("student"))
    return {
        "name": "tiny",
        "data": {"train": {"asset": "sentiment", "split": "train"}},
        "tokenizer": "owner/tokenizer",
        "stages": list(stages),
    } | keys


def problems(raw: dict[str, Any]) -> list[str]:
    """The lines a user would read about it."""
    try:
        run_from_dict(raw)
    except ConfigError as error:
        return list(error.problems)
    return []


def assert_one_problem(raw: dict[str, Any], line: str) -> None:
    """The user reads one line that holds `line`, and begins with the path that it begins with."""
    (found,) = problems(raw)
    assert line in found
    if not line.startswith("the student"):
        assert found.startswith(line.split(":")[0] + ":")
