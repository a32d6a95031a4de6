"""Processes killed at random moments, in every stage: the same command ends with bitwise the same parameters."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_chain import assert_same_params, chain_config, write_config

PROGRAM = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
from jaxdistill.cli import main
main()
"""


def start(config: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".jax_cache")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.long
@pytest.mark.slow
def test_killed_again_and_again(finished: Path, material: Path, tmp_path: Path):
    output = tmp_path / "run"
    config = write_config(tmp_path / "tiny.yaml", chain_config(material, output))
    rng = random.Random(0)
    kills = 0
    while True:
        process = start(config)
        # let it reach the point where it works on a stage, then kill it somewhere in the next seconds
        before = _progress(output)
        deadline = time.monotonic() + 120
        while process.poll() is None and _progress(output) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        if kills < 5 and process.poll() is None:
            time.sleep(rng.uniform(0, 0.8))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
        break
    assert kills >= 4
    assert_same_params(finished, output)


@pytest.mark.slow
def test_sigterm_checkpoints_and_exits(material: Path, tmp_path: Path):
    output = tmp_path / "run"
    settings = chain_config(material, output)
    settings["stages"] = settings["stages"][:1]
    settings["stages"][0]["train"]["epochs"] = 2000
    process = start(write_config(tmp_path / "tiny.yaml", settings))
    deadline = time.monotonic() + 120
    while not (output / "stages" / "teacher" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors.decode()
    assert b"SIGTERM" in errors
    steps = [
        int(path.name) for path in (output / "stages" / "teacher" / "checkpoints").iterdir() if path.name.isdigit()
    ]
    assert steps


def _progress(output: Path) -> int:
    """Grows with every checkpoint committed and every stage finished."""
    found = 0
    for directory, _, files in os.walk(output / "stages"):  # unlike glob, it bears directories that vanish
        found += ("manifest.json" in files and "saving" not in directory) + ("stage.json" in files)
    return found
