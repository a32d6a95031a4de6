"""Checkpoints of a stage: saved in the background by Orbax, trusted only when every byte is accounted for.

    DIRECTORY/STEP/                 what Orbax wrote: the parameters, the optimizer's state, step and random key
    DIRECTORY/STEP/manifest.json    sizes and checksums of those files, data position, fingerprints, metrics
    DIRECTORY/STEP.corrupt/         a damaged step that a resume has passed over
    DIRECTORY/STEP.saving…          a save that is under way, or was killed

A save is built under the name STEP.saving and renamed to STEP as its last act, so that a kill at any instant leaves
either the whole step or none. Steps are always listed afresh from the disk.

With several processes, which must all see the directory, every one of them makes every call: each writes and reads its
own part of the arrays and checks its share of the files; the first one does the rest, and all agree on how it went.
They save in the foreground, because what they do together must not run beside a compiled step.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax

from jaxdistill import atomic
from jaxdistill.errors import CheckpointError, ExternalError
from jaxdistill.parallel.distributed import is_lead_host
from jaxdistill.parallel.hosts import on_every_host, on_lead_host
from jaxdistill.train import checkpoint_arrays as arrays
from jaxdistill.train import manifest as manifests
from jaxdistill.train.checkpoint_steps import (
    damage_of,
    discard_if_damaged,
    list_steps,
    own_share,
    set_aside,
    step_directories,
    valid_manifests,
)
from jaxdistill.train.manifest import Manifest, file_digest

__all__ = ["Checkpoints", "Restored", "discard_if_damaged", "file_digest", "list_steps", "load_params"]

_LEFTOVER = re.compile(r"\d+\.(saving|deleting)(\..*)?")
_SHOWN = 12


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read back whole.

    Attributes:
      step: whose it is.
      state: shaped and placed like the template.
      data_state: as given to `save`, for the data iterator.
      extra: as given to `save`.
      metrics: as given to `save`; a NaN or infinity comes back as None.
      warnings: one line for each newer step that was damaged and passed over.
    """

    step: int
    state: Any
    data_state: Any
    extra: Any
    metrics: dict[str, float | None] | None
    warnings: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one stage, of which this object is the only writer.

    Use as a context manager, or `close()` at the end: a save in flight is then waited for.

    Args:
      directory: created if missing; what a killed save left in it is deleted.
      keep: how many of the newest steps stay.
      best_mode: whether `best` is the step with the largest or the smallest `best_value`; it stays besides the
        newest. None: nothing is best.
      fingerprints: what is trained on what; kept in each checkpoint, and one with others is not restored.

    Raises:
      ExternalError: the directory cannot be created or written.
    """

    def __init__(
        self, directory: Path, *, keep: int, best_mode: Literal["max", "min"] | None, fingerprints: dict[str, str]
    ) -> None:
        self.directory = Path(directory)
        self._keep = keep
        self._best_mode = best_mode
        self._fingerprints = dict(fingerprints)
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        with atomic.disk_errors(self.directory, doing="write checkpoints in"):
            on_lead_host(self._prepare)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Any,
        data_state: bytes | dict[str, Any] | None,
        *,
        metrics: Mapping[str, float | None] | None = None,
        best_value: float | None = None,
        extra: Any = None,
    ) -> None:
        """Save in the background; returns once `state` is copied to the host, so that the next step may donate it.

        Args:
          step: name of the checkpoint; one that is there already is replaced.
          state: registered dataclass or dict with `params`, a nested dict of arrays, and any other leaves; typed
            random keys are kept as keys. Arrays may be replicated or sharded over devices.
          data_state: the data iterator's `get_state()`.
          metrics: of this step, for whoever reads the checkpoint.
          best_value: what `best` compares; None or not finite: this step is not eligible.
          extra: JSON that a resume gets back.

        Raises:
          ExternalError: the save before this one failed because of the disk; that step does not exist.
          TypeError: `data_state` or `extra` is not JSON.
        """
        self.wait()
        leaves = arrays.flatten(state)
        about = Manifest(
            step=int(step),
            files={},
            leaves={path: arrays.describe(leaf) for path, leaf in leaves.items()},
            fingerprints=self._fingerprints,
            metrics=manifests.as_json(metrics),
            best_value=float(best_value) if best_value is not None and math.isfinite(best_value) else None,
            data_state=manifests.encode_data_state(data_state),
            extra=manifests.as_json(extra),
        )
        if jax.process_count() > 1:
            self._commit({path: arrays.as_data(leaf) for path, leaf in leaves.items()}, about)
            return
        copies = {path: arrays.own_copy(leaf) for path, leaf in leaves.items()}
        self._pending = self._thread.submit(self._commit, copies, about)

    def wait(self) -> None:
        """Return when the save in flight is committed; raises its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """`wait`, and end the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def exists(self) -> bool:
        """Whether any step was ever committed here, whole or damaged by now: then `restore` must not be skipped."""
        return on_lead_host(lambda: bool(step_directories(self.directory)))

    def steps(self) -> list[int]:
        """Committed steps with a valid manifest, ascending; a save in flight is not among them."""
        return on_lead_host(lambda: list_steps(self.directory))

    def latest(self) -> int | None:
        """The newest of `steps()`."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best `best_value`; of equal ones the earliest. None if no step has one."""
        return on_lead_host(self._best)

    def _best(self) -> int | None:
        values = {step: manifest.best_value for step, manifest in valid_manifests(self.directory).items()}
        candidates = [(value, step) for step, value in values.items() if value is not None]
        if self._best_mode is None or not candidates:
            return None
        sign = 1 if self._best_mode == "max" else -1
        return max(candidates, key=lambda candidate: (sign * candidate[0], -candidate[1]))[1]

    def restore(self, template_state: Any, *, step: int | None = None) -> Restored:
        """Read the newest whole step back, or exactly `step`.

        Each newer step that is truncated, corrupted or incomplete is renamed STEP.corrupt and named in `.warnings`.

        Args:
          template_state: tree of arrays or `jax.ShapeDtypeStruct`s like the state that was saved; leaves with a
            sharding are restored at it, the others uncommitted on the default device.
          step: no fallback: this step or an error.

        Raises:
          CheckpointError: no whole step; it was made with other fingerprints; or its arrays differ from the
            template's (all differences are listed, before anything is loaded).
        """
        self.wait()
        found = on_lead_host(lambda: step_directories(self.directory))
        candidates = sorted(found, reverse=True) if step is None else [step]
        if not candidates:
            raise CheckpointError(f"{self.directory}: no checkpoint here; train the stage first")
        bad: list[tuple[Path, str]] = []
        for candidate in candidates:
            path = self.directory / str(candidate)
            damage = damage_of(path, check=partial(self._check, path, template_state=template_state))
            if damage is not None:
                bad.append((path, damage))
                continue
            manifest = manifests.read(path)
            leaves = arrays.read(path, arrays.flatten(template_state))
            return Restored(
                step=candidate,
                state=jax.tree.unflatten(jax.tree.structure(template_state), leaves.values()),
                data_state=manifests.decode_data_state(manifest.data_state),
                extra=manifest.extra,
                metrics=manifest.metrics,
                warnings=tuple(
                    f"damaged checkpoint {why}; going on from step {path.name} instead "
                    f"(the damaged one is now {on_lead_host(partial(set_aside, where))})"
                    for where, why in bad
                ),
            )
        problems = "; ".join(why for _, why in bad)
        raise CheckpointError(
            f"{self.directory}: no whole checkpoint ({problems}); put one back from a copy, or delete this stage's "
            "directory to train it anew"
        )

    def _check(self, path: Path, manifest: Manifest, template_state: Any) -> None:
        """Refuse a checkpoint of something else."""
        old, new = manifest.fingerprints, self._fingerprints
        changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if changed:
            listed = ", ".join(f"{name} ({_short(old.get(name))} → {_short(new.get(name))})" for name in changed)
            raise CheckpointError(
                f"{path}: made with a different {listed}; give back what the stage was begun with, or choose another "
                "output_dir"
            )
        expected = {leaf: arrays.describe(value) for leaf, value in arrays.flatten(template_state).items()}
        differences = arrays.differences(manifest.leaves, expected)
        if differences:
            shown = differences[:_SHOWN]
            if len(differences) > _SHOWN:
                shown.append(f"… {len(differences) - _SHOWN} more")
            raise CheckpointError(
                f"{path}: a checkpoint of another architecture or optimizer: {'; '.join(shown)}; give back the "
                "configuration it was made with, or choose another output_dir"
            )

    def _commit(self, copies: dict[str, Any], about: Manifest) -> None:
        """In the background: write, add the manifest, give it its name, and only then delete what is too old."""
        target = self.directory / str(about.step)
        saving = self.directory / f"{about.step}.saving"

        def give_its_name() -> None:
            atomic.replace_directory(saving, target)
            self._delete_old()

        with _save_errors(target):
            on_lead_host(self._remove_leftovers)
            try:
                on_every_host(partial(arrays.check_room, saving, copies))
                on_every_host(partial(arrays.write, saving, copies))
                records = on_every_host(lambda: [*manifests.file_records(saving, share=own_share()).items()])
                files = {name: record for part in records for name, record in part}
                on_lead_host(lambda: manifests.write(saving, replace(about, files=files)))
            except BaseException:
                if is_lead_host():
                    self._remove_leftovers()  # on a full disk half a checkpoint is what is in the way
                raise
            on_lead_host(give_its_name)

    def _prepare(self) -> None:
        """The directory, without what killed saves left in it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Delete what a killed or failed save or deletion left behind."""
        for entry in self.directory.iterdir():
            if _LEFTOVER.fullmatch(entry.name):
                shutil.rmtree(entry)
        atomic.remove_leftovers(self.directory)

    def _delete_old(self) -> None:
        """Keep the newest and the best. A step is renamed before it is deleted: half a step never bears its name."""
        steps = list_steps(self.directory)
        spared = {*steps[-self._keep :], self._best()}
        for step in steps:
            if step not in spared:
                doomed = self.directory / f"{step}.deleting"
                (self.directory / str(step)).rename(doomed)
                shutil.rmtree(doomed)


def load_params(step_dir: Path, *, sharding: Any = None) -> dict[str, Any]:
    """The parameters alone of one checkpoint: what a stage hands to the next.

    Args:
      step_dir: DIRECTORY/STEP, of which every file is verified and none is changed.
      sharding: where each array is put as it is read: a `jax.sharding.Sharding`, a tree of them like the parameters (or
        a prefix of it), or a function from the tree of shapes to one. Every process must then make the call. None:
        whole, on this process's default device.

    Returns:
      Nested dict of arrays; without a sharding uncommitted, whatever devices they were saved from.

    Raises:
      CheckpointError: the checkpoint is missing, truncated or corrupted (the file is named), or the shardings are of
        other parameters.
    """
    step_dir = Path(step_dir)
    damage = damage_of(step_dir, alone=sharding is None)
    if damage is not None:
        raise CheckpointError(
            f"{damage}; put this checkpoint back from a copy, or delete the stage's directory to train it anew"
        )
    wanted = arrays.described_params(manifests.read(step_dir).leaves)
    if sharding is not None:
        shapes = arrays.nested_params(wanted)
        try:
            placed = arrays.with_shardings(shapes, sharding(shapes) if callable(sharding) else sharding)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{step_dir}: its parameters are not those to be placed: {reason}") from error
        wanted = arrays.flatten({"params": placed})
    return arrays.nested_params(arrays.read(step_dir, wanted, alone=sharding is None))


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]


@contextmanager
def _save_errors(target: Path) -> Iterator[None]:
    """A failing disk in one line, also where TensorStore reports it as an error of its own."""
    try:
        with atomic.disk_errors(target, doing="save the checkpoint"):
            yield
    except ExternalError:
        raise
    except Exception as error:  # TensorStore has no error class for a full disk; anything else is raised again
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO):
            if os.strerror(number) in str(error):
                failed = OSError(number, os.strerror(number))
                raise ExternalError(atomic.explain(failed, target, doing="save the checkpoint")) from error
        raise
