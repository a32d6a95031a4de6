"""Two real processes on loopback train and save; both are killed, and one process alone goes on from there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import one_of_several
import pytest
from sharded_training import MESHES, SGD, make_step, start, train

from jaxdistill.train.checkpoint import list_steps, load_params

SAVED, STEPS = 3, 5


def spawn(process: int, port: int, arguments: list[str], errors: Path) -> subprocess.Popen[str]:
    given = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)}
    return subprocess.Popen(
        [sys.executable, one_of_several.__file__, *arguments],
        env={**os.environ, **given, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
    )


def said_by(process: subprocess.Popen[str], errors: Path) -> list[dict]:
    """What it prints until it has restored its last checkpoint; its errors if it ends before."""
    assert process.stdout is not None
    said: list[dict] = []
    for line in process.stdout:
        if line.startswith("{"):
            said.append(json.loads(line))
        if said and "restored" in said[-1]:
            return said[:-1]
    raise AssertionError(errors.read_text()[-3000:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "shares"),
    [
        ((2, 2, 1), [[0, 2], [1, 2]]),  # each process half of the batch
        # both the whole of it, and half of every head
        pytest.param((1, 1, 4), [[0, 1], [0, 1]], marks=pytest.mark.long),
    ],
)
def test_killed_in_two_processes_and_continued_in_one(tmp_path: Path, mesh, shares):
    step, optimizer = make_step("llama", MESHES["1x1x1"], fused="on", optimizer=SGD)
    state, teacher = start("llama", step, optimizer)
    fresh, expected = train("llama", step, state, teacher, range(STEPS))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(tmp_path / "checkpoints"), "x".join(map(str, mesh)), str(SAVED)]
    errors = [tmp_path / f"{index}.errors" for index in range(2)]
    processes = [spawn(index, port, arguments, errors[index]) for index in range(2)]
    try:
        said = [said_by(*pair) for pair in zip(processes, errors, strict=True)]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    for index, rows in enumerate(said):
        np.testing.assert_allclose([row["loss"] for row in rows], expected[:SAVED], rtol=1e-5)
        assert [row["share"] for row in rows] == [shares[index]] * SAVED

    assert list_steps(tmp_path / "checkpoints") == [1, 2, 3]
    with one_of_several.checkpoints(tmp_path / "checkpoints") as saved:
        restored = saved.restore(step.abstract_state())
    assert (restored.step, restored.data_state) == (SAVED, {"next": SAVED})
    handed_on = load_params(tmp_path / "checkpoints" / str(SAVED))
    jax.tree.map(np.testing.assert_array_equal, handed_on, restored.state.params)
    state, losses = train("llama", step, restored.state, teacher, range(SAVED, STEPS))
    np.testing.assert_allclose(losses, expected[SAVED:], rtol=1e-5)
    for got, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(fresh.params), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
