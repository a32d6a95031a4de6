"""A stage from its first step to its last: what is compiled, and when the host reads from the device."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from tiny_chain import TINY, chain_config, final_params, run, write_config

from jaxdistill.train.loop import _Loop
from jaxdistill.train.metrics import fetch

pytestmark = pytest.mark.slow

READS = {ArrayImpl._value.fget.__wrapped__.__code__, jax.block_until_ready.__code__}
"""NumPy arrays, numbers and text of a device's values are made by the first; the second waits for them."""


@contextmanager
def observed() -> Iterator[Counter[str]]:
    """Counts, from outside, what runs while steps are taken: reads in a step, reads to log, dispatches, programs."""
    seen: Counter[str] = Counter()
    sections = {_Loop._advance.__code__: "dispatch", fetch.__code__: "log", _Loop._evaluate.__code__: "evaluation"}
    inside: list[str] = []

    def profile(frame, event, _):
        code = frame.f_code
        if code in sections:
            if event == "call":
                inside.append(sections[code])
                seen[sections[code]] += 1
            elif event == "return":
                inside.pop()
        elif event == "call" and code in READS:
            seen[f"read in {inside[-1]}" if inside else "read elsewhere"] += 1

    def compiled(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and inside:
            seen[f"program in {inside[-1]}"] += 1

    jax.monitoring.register_event_duration_secs_listener(compiled)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        jax.monitoring.unregister_event_duration_listener(compiled)


def trained(material: Path, output: Path, *, steps: int, batching: str) -> tuple[Path, Counter[str]]:
    """One stage with up to so many steps in a dispatch: 30 steps, evaluated at 12, 24 and the end."""
    config = chain_config(material, output)
    config["data"]["batching"] = batching
    config["stages"] = [config["stages"][3]]
    config["tokenizer"] = str(material / "encoder")
    config["stages"][0]["train"] |= {"steps_per_dispatch": steps, "log_every": 5, "epochs": 3}
    config["stages"][0]["evaluate"] = {"every": 12}
    path = write_config(output.parent / "tiny.yaml", config)
    with observed() as seen:
        run(path)
    return output, seen


def figures(output: Path) -> tuple[object, ...]:
    """Steps, examples and tokens of the stage, and how many rows its curves have."""
    measured = json.loads((output / "summary.json").read_text())["stages"][0]["train"]
    rows = (output / "stages/scratch/metrics.jsonl").read_text().splitlines()
    return measured["steps"], measured["examples"], measured["tokens"], len(rows)


@pytest.fixture(scope="module")
def runs(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Counter[str]]]:
    """The same stage with one, and with up to three steps in a dispatch."""
    jax.clear_caches()  # whatever ran before in this process, the first compiles all it needs
    return {
        name: trained(material, tmp_path_factory.mktemp(name) / "run", steps=steps, batching="bucketed")
        for name, steps in (("one", 1), ("three", 3))
    }


def test_nothing_is_read_between_log_lines_and_little_is_compiled(runs) -> None:
    for _, seen in runs.values():
        assert seen["read in log"] > 0  # so reading is seen
        assert seen["read in dispatch"] == 0
        # 30 steps: log lines at 5, 10, …, 30, evaluations at 12 and 24
        assert seen["log"] == 8
        assert 1 <= seen["program in dispatch"] <= 8
        assert seen["program in evaluation"] <= 8
    assert runs["one"][1]["program in evaluation"] >= 1
    assert runs["one"][1]["dispatch"] == 30
    assert runs["three"][1]["dispatch"] < 20
    assert runs["three"][1]["program in dispatch"] == runs["one"][1]["program in dispatch"]


def test_steps_together_end_where_single_ones_do(runs) -> None:
    one, three = (final_params(runs[name][0], "scratch") for name in ("one", "three"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, three)
    assert figures(runs["one"][0]) == figures(runs["three"][0])


def test_packed_updates_have_as_many_examples(runs, material: Path, tmp_path: Path) -> None:
    output, seen = trained(material, tmp_path / "run", steps=3, batching="packed")
    assert figures(output) == figures(runs["one"][0])
    assert seen["read in dispatch"] == 0
    assert 1 <= seen["program in dispatch"] <= 8


def test_terms_and_phases_wait_for_nothing_and_compile_once_each(material: Path, tmp_path: Path) -> None:
    """Layers, attentions and relations by learned projections, a weight that fades, then logits: one program each."""
    config = chain_config(material, tmp_path / "run")
    config["data"]["batching"] = "padded"  # one length
    student = {"architecture": "bert", **TINY, "hidden_size": 8}
    fades = {"schedule": "linear", "from": 1.0, "to": 0.0}
    between = [
        {"type": "hidden_state_mse", "projection": "per_pair", "weight": fades},
        {"type": "attention_mse"},
        {"type": "relation_kl", "layers": "last"},
        {"type": "cosine", "projection": "shared", "weight": 0},
    ]
    config["stages"] = [
        {**config["stages"][0], "train": {"steps": 2, "batch_size": 16, "steps_per_dispatch": 1}},
        {
            "name": "student",
            "student": student,
            "loss": [{"phase": "between", "terms": between}, {"phase": "logits", "terms": {"preset": "hinton"}}],
            "train": {"steps": 8, "batch_size": 16, "log_every": 2, "steps_per_dispatch": 1},
            "evaluate": {"every": 3},
        },
    ]
    jax.clear_caches()
    with observed() as seen:
        run(write_config(tmp_path / "tiny.yaml", config))
    assert seen["log"] >= 4
    assert seen["read in dispatch"] == 0
    assert seen["program in dispatch"] == 3  # the teacher's, and one of each phase
