"""A chain run by two real processes: killed, and continued by one, it ends where two would have ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_chain import final_params, run, write_config
from tiny_text import text_config, write_text, write_word_tokenizer

from jaxdistill.errors import CheckpointError


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    for name, documents, seed in (("train", 200, 0), ("validation", 10, 1)):
        write_text(directory / f"{name}.txt", documents, seed)
    write_word_tokenizer(directory / "tokenizer")
    return directory


def config(material: Path, output: Path, **parallel: Any) -> Path:
    raw = text_config(material, output, parallel=parallel)
    del raw["data"]["test"]
    raw["stages"] = raw["stages"][:1]
    raw["stages"][0]["train"] |= {"steps": 24}
    raw["stages"][0] |= {"evaluate": {"every": 12, "batch_size": 8}, "checkpoint": {"every": 4}}
    return write_config(output.parent / f"{output.name}.yaml", raw)


def start_two(path: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": ""}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jaxdistill", "run", str(path)],
            env={**os.environ, **job, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]


def _steps(saved: Path) -> list[Path]:
    """Whole checkpoints: one under way has another name."""
    return [path for path in saved.glob("*") if path.name.isdigit()]


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_continues_for_two(material: Path, tmp_path: Path) -> None:
    whole = [process.communicate(timeout=300) for process in start_two(config(material, tmp_path / "whole"))]
    assert b"summary:" in whole[0][0], whole[0][1].decode()
    assert b"summary:" not in whole[1][0]  # one of them speaks

    killed = start_two(config(material, tmp_path / "killed"))
    saved = tmp_path / "killed" / "stages" / "teacher" / "checkpoints"
    deadline = time.monotonic() + 300
    while not _steps(saved) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(config(material, tmp_path / "killed", data=1))

    ends = [final_params(tmp_path / name, "teacher") for name in ("whole", "killed")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)


def test_parts_that_cannot_be_shared_evenly(material: Path, tmp_path: Path) -> None:
    from jaxdistill.config import load_run
    from jaxdistill.data import load_tokenizer, text
    from jaxdistill.stages.text_feed import TextFeed

    data = load_run(config(material, tmp_path / "run", data=1)).data
    split = text.open_split(data, "train", load_tokenizer(material / "tokenizer"), sequence_length=32)
    assert split is not None
    one = TextFeed(split, (0, 1))
    begun = one.iterator(batch_size=6, seed=0, steps=4)
    with pytest.raises(CheckpointError, match="begun by 1 processes, and 2 cannot share"):
        TextFeed(split, (1, 2)).iterator(batch_size=6, seed=0, steps=4, positions=[begun.get_state()])


def test_one_process_reads_what_three_would(material: Path, tmp_path: Path) -> None:
    from jaxdistill.config import load_run
    from jaxdistill.data import load_tokenizer, text
    from jaxdistill.stages.text_feed import TextFeed

    data = load_run(config(material, tmp_path / "run", data=1)).data
    split = text.open_split(data, "train", load_tokenizer(material / "tokenizer"), sequence_length=32)
    assert split is not None
    three = [TextFeed(split, (index, 3)).iterator(batch_size=6, seed=0, steps=5) for index in range(3)]
    for _ in range(2):
        for part in three:
            next(part)
    alone = TextFeed(split, (0, 1)).iterator(
        batch_size=6, seed=0, steps=5, positions=[part.get_state() for part in three]
    )
    for _ in range(3):
        parts, batch = [next(part) for part in three], next(alone)
        for name, rows in batch.items():
            np.testing.assert_array_equal(rows, np.concatenate([part[name] for part in parts]), err_msg=name)
