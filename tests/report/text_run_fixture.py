"""A fabricated run of language models: a given teacher, an assistant, a student of two seeds and two controls."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

CONFIG = """\
name: text
stages:
- name: assistant
  teacher: {pretrained: org/large}
- name: student
  teacher: previous
- name: direct
  teacher: {pretrained: org/large}
- name: scratch
  teacher: null
"""
TEACHER = 18.5


def stage(name: str, *, perplexity: float, seed: int = 0, key: str | None = None, **fields: Any) -> dict[str, Any]:
    """One entry of summary.json; the test perplexity is 10 % above validation's."""

    def metrics(value: float) -> dict[str, float]:
        measured = {"perplexity": value, "loss": math.log(value), "accuracy": 1.2 / math.log(value), "tokens": 51_200.0}
        if fields.get("teacher"):
            theirs = {"teacher_perplexity": TEACHER, "teacher_loss": math.log(TEACHER)}
            measured |= {**theirs, "kl": math.log(value / 15), "agreement": 0.55}
        return measured

    return {
        "name": name,
        "key": key or name,
        "seed": seed,
        "teacher": None,
        "given": False,
        "architecture": "llama L30 H576",
        "parameters": 134_515_008,
        "bytes": 538_060_032,
        "eval": {"validation": metrics(perplexity), "test": metrics(1.1 * perplexity)},
        "retention": {"validation": TEACHER / perplexity, "test": TEACHER / perplexity},
        "train": {
            "steps": 300,
            "examples": 600,
            "tokens": 307_000,
            "seconds": 4200.0,
            "examples_per_second": 0.2,
            "tokens_per_second": 73.4,
            "compile_seconds": 30.0,
            "skipped_steps": 0,
            "best_step": 300,
        },
        **fields,
    }


def summary() -> dict[str, Any]:
    """The finished run."""
    return {
        "name": "text",
        "created": "2026-07-01T12:00:00Z",
        "jaxdistill": "0.1.0",
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "stages": [
            stage("org/large", perplexity=TEACHER, given=True, train=None, retention=None),
            stage("assistant", perplexity=37.0, teacher=["org/large"]),
            stage("student", key="student/seed-0", perplexity=74.0, teacher=["assistant"]),
            stage("student", key="student/seed-1", seed=1, perplexity=76.0, teacher=["assistant"]),
            stage("direct", perplexity=92.5, teacher=["org/large"]),
            stage("scratch", perplexity=1850.0),
        ],
    }


def write_run(directory: Path, content: dict[str, Any]) -> Path:
    """Write summary.json, config.yaml and the metrics of every stage."""
    (directory / "stages").mkdir(parents=True)
    (directory / "config.yaml").write_text(CONFIG)
    (directory / "summary.json").write_text(json.dumps(content))
    for entry in content["stages"]:
        if not entry["given"]:
            where = directory / "stages" / entry["key"]
            where.mkdir(parents=True)
            write_metrics(where, taught=bool(entry["teacher"]))
    return directory


def write_metrics(directory: Path, *, taught: bool) -> None:
    """metrics.jsonl with a falling loss and a perplexity that falls from thousands."""
    lines = []
    for step in range(10, 301, 10):
        ce = 4.0 + 4.0 * math.exp(-step / 80)
        kd = ce - 3.0 if taught else 0.0
        lines.append({"step": step, "kind": "train", "loss": ce + kd, "kd": kd, "ce": ce, "learning_rate": 1e-4})
        if step % 50 == 0:
            row = {"step": step, "kind": "validation", "perplexity": math.exp(ce + 1), "accuracy": 0.3, "loss": ce + 1}
            lines.append(row | ({"teacher_perplexity": TEACHER} if taught else {}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
