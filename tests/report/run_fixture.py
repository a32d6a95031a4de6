"""A fabricated run directory with the shape of a real one: a chain with controls, five seeds, one given teacher."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

CONFIG = """\
name: sst2 <chain>
stages:
- name: assistant
  teacher: {pretrained: org/large}
- name: student
  teacher: previous
- name: direct
  teacher: {pretrained: org/large}
- name: scratch
  teacher: null
- name: tiny
  teacher: student
"""


def stage(name: str, *, accuracy: float, seed: int = 0, key: str | None = None, **fields: Any) -> dict[str, Any]:
    """One entry of summary.json; test accuracy is 0.01 below validation's."""
    metrics: dict[str, Any] = {"accuracy": accuracy, "f1": accuracy - 0.005, "loss": 0.4}
    if fields.get("teacher"):
        metrics |= {"kl": 0.3 * (1 - accuracy), "agreement": accuracy + 0.05}
    return {
        "name": name,
        "key": key or name,
        "seed": seed,
        "teacher": None,
        "given": False,
        "architecture": "bert L2 H128",
        "parameters": 4_386_178,
        "bytes": 17_544_712,
        "eval": {"validation": metrics, "test": {**metrics, "accuracy": accuracy - 0.01}},
        "retention": {"validation": accuracy / 0.93, "test": (accuracy - 0.01) / 0.92},
        "train": {
            "steps": 2000,
            "examples": 64_000,
            "tokens": 850_000,
            "seconds": 95.0,
            "examples_per_second": 673.7,
            "tokens_per_second": 8947.0,
            "compile_seconds": 6.0,
            "skipped_steps": 0,
            "best_step": 1500,
        },
        **fields,
    }


def summary() -> dict[str, Any]:
    """A finished part of the run: everything but the stage `tiny`."""
    big = {"architecture": "bert L24 H1024", "parameters": 335_143_938, "bytes": 1_340_575_752}
    seeds = range(5)
    return {
        "name": "sst2 <chain>",
        "created": "2026-07-01T12:00:00Z",
        "jaxdistill": "0.1.0",
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "stages": [
            stage(
                "org/large", accuracy=0.93, given=True, train=None, retention={"validation": 1.0, "test": 1.0}, **big
            ),
            stage(
                "assistant", accuracy=0.875, teacher=["org/large"], architecture="bert L4 H256", parameters=11_171_074
            ),
            *(
                stage("student", key=f"student/seed-{k}", seed=k, accuracy=0.80 + 0.01 * k, teacher=["assistant"])
                for k in seeds
            ),
            stage("direct", accuracy=0.81, teacher=["org/large"]),
            stage("scratch", accuracy=0.79),
        ],
    }


def write_run(directory: Path, content: dict[str, Any] | None = None, *, steps: int = 2000) -> Path:
    """Write summary.json, config.yaml and metrics of every stage; a run directory as `jaxdistill run` leaves it."""
    content = summary() if content is None else content
    (directory / "stages").mkdir(parents=True)
    (directory / "config.yaml").write_text(CONFIG)
    (directory / "summary.json").write_text(json.dumps(content))
    for entry in content["stages"]:
        if not entry["given"]:
            where = directory / "stages" / entry["key"]
            where.mkdir(parents=True)
            write_metrics(where, steps=steps, kd=bool(entry["teacher"]), seed=entry["seed"])
    return directory


def write_metrics(directory: Path, *, steps: int, kd: bool, seed: int) -> None:
    """metrics.jsonl with a falling loss and a rising accuracy."""
    noise = random.Random(seed)
    lines = []
    for step in range(50, steps + 1, 50):
        ce = 0.25 + 0.45 * math.exp(-step / 500) + noise.gauss(0, 0.02)
        term = 0.05 + 0.5 * math.exp(-step / 400) + noise.gauss(0, 0.01) if kd else 0.0
        row = {"step": step, "kind": "train", "loss": ce + term, "kd": term, "ce": ce, "learning_rate": 1e-4}
        lines.append(row)
        if step % 250 == 0:
            accuracy = 0.85 - 0.3 * math.exp(-step / 600) + noise.gauss(0, 0.006)
            lines.append({"step": step, "kind": "validation", "loss": ce, "accuracy": accuracy})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
