"""Training curves: metrics fetched from the device in one go, and written to metrics.jsonl, TensorBoard and W&B."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from jaxdistill import atomic
from jaxdistill.errors import ConfigError
from jaxdistill.train.tensorboard import EventFile


def fetch(metrics: Sequence[Mapping[str, tuple[Any, Any]]]) -> tuple[dict[str, float], np.ndarray]:
    """Bring the metrics of several dispatches to the host in one transfer: the only wait for the device between logs.

    Args:
      metrics: for each dispatch, name -> (sum, count) on the device, with `skipped` among them: [] for one step, [K]
        for up to K steps, of which those that were not taken have counts of 0.

    Returns:
      name -> Σ sum / Σ count (NaN where nothing was counted), without `skipped`; and bool [steps], which were skipped.
    """
    on_host = jax.device_get(list(metrics))
    taken = [int(np.sum(some["skipped"][1])) for some in on_host]
    names = dict.fromkeys(name for some in on_host for name in some)
    flat = {
        name: _flat([(some[name], n) for some, n in zip(on_host, taken, strict=True) if name in some]) for name in names
    }
    skipped = flat.pop("skipped")[0] > 0 if flat else np.zeros(0, bool)
    sums = {name: pairs.sum(axis=1) for name, pairs in flat.items()}
    return {name: float(total / count) if count else math.nan for name, (total, count) in sums.items()}, skipped


def _flat(dispatches: Sequence[tuple[tuple[Any, Any], int]]) -> np.ndarray:
    """(sum, count) of every step, float64 [2, steps]; each dispatch's with the number of its steps."""
    return np.concatenate(
        [np.reshape(pair, (2, -1))[:, :steps].astype(np.float64) for pair, steps in dispatches], axis=1
    )


class MetricsWriter:
    """Writes a stage's curves. Use as a context manager, or `close()` at the end.

    DIRECTORY/metrics.jsonl gets one JSON object a row, {"step", "kind", values…}, with null for NaN and infinities.
    DIRECTORY/tensorboard gets the same as KIND/NAME. A row is in the files when `write` returns. On a resume, what was
    logged after the checkpoint is dropped (in W&B, which cannot forget, it is drawn again: `step` is the x axis there).

    Args:
      directory: of the stage.
      tensorboard: also write TensorBoard files.
      wandb: W&B project, or None.
      run_name: what W&B calls the run.
      resume_step: step of the checkpoint that is continued from; 0 is a fresh start.

    Raises:
      ConfigError: W&B is asked for and not installed.
      ExternalError: the directory cannot be written.
    """

    def __init__(
        self, directory: Path, *, tensorboard: bool, wandb: str | None, run_name: str, resume_step: int
    ) -> None:
        self._path = Path(directory) / "metrics.jsonl"
        self._wandb = None if wandb is None else _start_wandb(Path(directory), project=wandb, name=run_name)
        self._tensorboard = EventFile(Path(directory) / "tensorboard", resume_step=resume_step) if tensorboard else None
        with atomic.disk_errors(self._path, doing="write"):
            atomic.atomic_write_text(self._path, "".join(_rows_until(self._path, resume_step)))
            self._file = self._path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Log `values` of one step; `kind` is `train`, `validation`, …

        Raises:
          ExternalError: the disk is full.
        """
        with atomic.disk_errors(self._path, doing="write"):
            atomic.append(self._file, (atomic.json_text({"step": step, "kind": kind, **values}) + "\n").encode())
        named = {f"{kind}/{name}": value for name, value in values.items() if math.isfinite(value)}
        if self._tensorboard is not None:
            self._tensorboard.write(step, named)
        if self._wandb is not None:
            self._wandb.log({"step": step, **named})

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_wandb() -> Any:
    """The `wandb` module.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "logging.wandb: the wandb package is not installed; `pip install 'jaxdistill[wandb]'` or leave "
            "logging.wandb out"
        ) from error
    return wandb


def _rows_until(path: Path, resume_step: int) -> list[str]:
    """The whole rows of an earlier start up to `resume_step`; a row torn by a kill is not among them."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(row, dict) and row.get("step", math.inf) <= resume_step:
            rows.append(line)
    return rows


def _start_wandb(directory: Path, *, project: str, name: str) -> Any:
    """The W&B run of this stage directory, continued if it has been begun."""
    wandb = require_wandb()
    path = directory / "wandb-id"
    if not path.exists():
        atomic.atomic_write_text(path, uuid.uuid4().hex[:12])
    run = wandb.init(project=project, name=name, id=path.read_text(encoding="utf-8"), resume="allow", dir=directory)
    run.define_metric("*", step_metric="step")
    return run
