"""How long a run takes to its first step: the first time, and again when its programs are in the compilation cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import JaxdistillError


def first_step_seconds(config: Path, overrides: Sequence[str], *, stage: str) -> dict[str, float]:
    """Start a stage twice, each in a process of its own, with a compilation cache that is empty at first.

    Args:
      config: YAML file of the run.
      overrides: as of `load_run`.
      stage: its key.

    Returns:
      {"first", "second", "ratio"}: wall seconds from the start of the process to the end of the first step, data and
      models being read included; ratio: second / first.

    Raises:
      JaxdistillError: a process failed; what it printed is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="jaxdistill-") as cache:
        # a directory of its own, whatever JAX's settings name; how long a program must have taken is as in a run
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
        first, second = (_start([str(config), stage, *overrides], environment) for _ in range(2))
    return {"first": first, "second": second, "ratio": second / first}


def _start(arguments: Sequence[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "jaxdistill.bench.restart", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
    if process.returncode or not line:
        raise JaxdistillError(f"{' '.join(command)}: ended with status {process.returncode} before its first step")
    return seconds


def _first_step(config: str, stage: str, *overrides: str) -> None:
    """What the process does: everything that `jaxdistill run` does up to the first step of a stage."""
    from jaxdistill.host_memory import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from jaxdistill.bench.runner import StepRunner
    from jaxdistill.config import build_chain, load_run
    from jaxdistill.stages.prepare import Preparation
    from jaxdistill.stages.stage_step import stage_step

    preparation = Preparation(build_chain(load_run(config, overrides)), Console(quiet=True), untrained=True)
    preparation.survey()
    runner = StepRunner(stage_step(preparation.task, preparation.surveys[stage]))
    runner.turn(1)
    print("done", flush=True)
    runner.close()


if __name__ == "__main__":
    _first_step(*sys.argv[1:])
