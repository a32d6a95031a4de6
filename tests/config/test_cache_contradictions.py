"""Teacher caches that could not be the teacher's answer, found before anything is loaded."""

from __future__ import annotations

import pytest
from raw_runs import assert_one_problem, run, stage

LLAMA = {
    "architecture": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
TEXT = {"task": "causal_lm", "train": {"path": "x.txt"}, "max_length": 64}


def text(*, data=None, loss=None, **changes):
    fields = {"student": LLAMA, "loss": loss} if loss else {"student": LLAMA}
    teacher = changes.pop("teacher", {"pretrained": "owner/model"})
    made = {**TEXT, **(data or {})}
    return run(stage("a", teacher=teacher, teacher_cache="disk", **fields), data=made, **changes)


def kl(**changes):
    return [{"type": "forward_kl", **changes}]


CASES = {
    "memory for a language model": (
        text() | {"stages": [{**text()["stages"][0], "teacher_cache": "memory"}]},
        "stages.0.teacher_cache: got 'memory', which holds a classifier's logits; for causal_lm write teacher_cache: d",
    ),
    "masked anew": (
        run(stage("a", teacher={"pretrained": "o/m"}, teacher_cache="disk"), data={**TEXT, "task": "masked_lm"}),
        "stages.0.teacher_cache: got 'disk', but the teacher's input is masked anew in every epoch",
    ),
    "streamed": (text(data={"streaming": True}), "stages.0.teacher_cache: got 'disk', but the data is streamed"),
    "several teachers": (
        text(teacher=[{"pretrained": "a/b"}, {"pretrained": "c/d"}]),
        "stages.0.teacher_cache: got 'disk', but the stage has 2 teachers",
    ),
    "a divergence that needs all classes": (
        text(loss=[{"type": "reverse_kl"}]),
        "stages.0.teacher_cache: disk keeps a language model's most probable tokens, of which reverse_kl cannot be had",
    ),
    "a temperature that is never the same": (
        text(loss=kl(temperature={"schedule": "linear", "from": 4, "to": 1})),
        "stages.0.teacher_cache: disk keeps the normaliser at declared temperatures",
    ),
    "hidden states": (
        run(stage("a", teacher=None), stage("b", loss=[{"type": "cosine"}]), teacher_cache="disk"),
        "stages.1.teacher_cache: disk keeps a teacher's logits, and cosine of the loss read more than those",
    ),
    "no teacher": (
        run(stage("a", teacher=None, teacher_cache="disk")),
        "stages.0.teacher_cache: got 'disk', but the stage has no teacher",
    ),
    "no tokens": (text(disk_cache={"top_k": 0}), "disk_cache.top_k: got 0; expected"),
}


@pytest.mark.parametrize("name", CASES)
def test_contradiction(name):
    assert_one_problem(*CASES[name])
