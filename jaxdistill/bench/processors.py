"""Processors and time: measuring on chosen ones only, with one thread where there is one, by the clock and by CPU time.

Nothing here imports JAX: what it is to see must be set before.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdistill.errors import UserError

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def pin(processors: Sequence[int]) -> None:
    """Keep this process, and all it starts, on these processors; on a single one, computations get one thread.

    To be called before NumPy, JAX or PyTorch is imported: they count the processors when they start.

    Raises:
      UserError: one of them is none of this process's, or the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--cpus: this system cannot keep a process on chosen processors; leave it out")
    allowed = os.sched_getaffinity(0)
    if missing := sorted(set(processors) - allowed):
        raise UserError(
            f"--cpus: {', '.join(map(str, missing))}: no such processor; this process may use "
            f"{', '.join(map(str, sorted(allowed)))}"
        )
    os.sched_setaffinity(0, set(processors))
    os.environ.update(_environment(len(set(processors))))


def run_pinned(script: str, arguments: Sequence[str], *, cpu: int) -> dict[str, Any]:
    """Run a Python script on the CPU `cpu` alone, with one thread, and return the JSON in the last line it prints."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})  # a process begins where the thread that starts it is
    try:
        done = subprocess.run(
            [sys.executable, script, *arguments],
            env={**os.environ, **_environment(1), "TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    finally:
        os.sched_setaffinity(0, allowed)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_in_turns(
    script: str, variants: Mapping[str, Sequence[str]], *, rounds: int, cpu: int
) -> dict[str, list[dict[str, Any]]]:
    """`run_pinned` for each variant (its arguments by its name), once a round; what each printed, round by round.

    A machine whose speed drifts then slows all of them. Every turn is said on stderr when it is over.
    """
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for turn in range(rounds):
        for variant, arguments in variants.items():
            figures = run_pinned(script, arguments, cpu=cpu)
            found[variant].append(figures)
            print(f"# {variant} round {turn + 1}: {figures}", file=sys.stderr, flush=True)
    return found


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Values by name as argparse reads them; None is left out."""
    given = {name.replace("_", "-"): str(value) for name, value in values.items() if value is not None}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def _environment(processors: int) -> dict[str, str]:
    """What libraries read how many threads to start from."""
    found = {"OMP_NUM_THREADS": str(processors)}
    if processors == 1:
        found["XLA_FLAGS"] = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), _ONE_THREAD)))
    return found


def processors() -> list[int] | None:
    """Those this process may use; None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def peak_resident_bytes() -> int:
    """The most memory this process has held so far, loading and compiling included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Stopwatch:
    """Seconds since it was made: by the clock, and those that processors worked for this process, all threads."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(wall, CPU) seconds."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu
