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
from tiny_chain import chain_config, final_params, run, write_config

from jaxdistill.train.loop import _Loop
from jaxdistill.train.metrics import fetch

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


@pytest.fixture(scope="module")
def runs(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Counter[str]]]:
    """The same stage with one, and with up to three steps in a dispatch; and packed."""
    found = {}
    for name, steps, batching in (("one", 1, "bucketed"), ("three", 3, "bucketed"), ("packed", 3, "packed")):
        output = tmp_path_factory.mktemp("dispatch") / "run"
        config = chain_config(material, output)
        config["data"]["batching"] = batching
        config["stages"] = [config["stages"][3]]
        config["tokenizer"] = str(material / "encoder")
        config["stages"][0]["train"] |= {"steps_per_dispatch": steps, "log_every": 5, "epochs": 3}
        config["stages"][0]["evaluate"] = {"every": 12}
        path = write_config(output.parent / "tiny.yaml", config)
        with observed() as seen:
            run(path)
        found[name] = output, seen
    return found


def test_nothing_is_read_between_log_lines_and_little_is_compiled(runs) -> None:
    for _, seen in runs.values():
        assert seen["read in log"] > 0  # so reading is seen
        assert seen["read in dispatch"] == 0
        # 30 steps: log lines at 5, 10, …, 30, evaluations at 12 and 24
        assert seen["log"] == 8
        assert 1 <= seen["program in dispatch"] <= 8
        assert seen["program in evaluation"] <= 8
    assert runs["one"][1]["program in evaluation"] >= 1  # the others find its programs
    assert runs["one"][1]["dispatch"] == 30
    assert runs["three"][1]["dispatch"] < 20
    assert runs["three"][1]["program in dispatch"] == runs["one"][1]["program in dispatch"]


def test_steps_together_end_where_single_ones_do(runs) -> None:
    one, three = (final_params(runs[name][0], "scratch") for name in ("one", "three"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, three)


def test_every_update_has_its_examples(runs) -> None:
    """Packed or not: the same numbers of steps, examples and tokens, and as many rows in the curves."""
    measured = [json.loads((output / "summary.json").read_text())["stages"][0]["train"] for output, _ in runs.values()]
    assert len({(each["steps"], each["examples"], each["tokens"]) for each in measured}) == 1
    curves = [(output / "stages/scratch/metrics.jsonl").read_text().splitlines() for output, _ in runs.values()]
    assert len({len(curve) for curve in curves}) == 1
