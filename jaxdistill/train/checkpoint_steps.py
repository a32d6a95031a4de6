"""The steps in a checkpoints directory as they lie on the disk: which are there, which are whole, and what becomes of a
damaged one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from jaxdistill import atomic
from jaxdistill.parallel.hosts import on_every_host, on_lead_host
from jaxdistill.train import manifest as manifests
from jaxdistill.train.manifest import DamagedError, Manifest

_STEP = re.compile(r"0|[1-9]\d*")


def list_steps(directory: Path) -> list[int]:
    """Steps with a valid manifest in a checkpoints directory, ascending; reads only, so anyone may ask."""
    return sorted(valid_manifests(directory))


def discard_if_damaged(directory: Path, step: int) -> str | None:
    """Check one step; if it is damaged, set it aside and delete the later ones, so that training goes on before it.

    Returns:
      One line on what was wrong and what follows, or None if the step is whole.
    """
    why = damage_of(directory / str(step))
    return None if why is None else on_lead_host(partial(_discard, directory, step, why))


def _discard(directory: Path, step: int, why: str) -> str:
    path = directory / str(step)
    for later in step_directories(directory):
        if later > step:
            shutil.rmtree(directory / str(later))
    aside = set_aside(path) if path.exists() else "gone"
    before = list_steps(directory)
    start = f"step {before[-1]}" if before else "the beginning"
    return f"damaged checkpoint {why}; training again from {start} (the damaged one is now {aside})"


def damage_of(step_dir: Path, *, check: Callable[[Manifest], None] | None = None, alone: bool = False) -> str | None:
    """What is wrong with a step's files, or None: every process reads its share of them, or all of them `alone`.

    `check` is given the manifest before anything else is read, and raises what it does not like.
    """

    def examine(share: tuple[int, int]) -> str | None:
        try:
            manifest = manifests.read(step_dir)
            if check is not None:
                check(manifest)
            manifests.verify(step_dir, manifest, share=share)
        except DamagedError as error:
            return str(error)
        return None

    if alone:
        return examine((0, 1))
    return next((found for found in on_every_host(lambda: examine(own_share())) if found is not None), None)


def own_share() -> tuple[int, int]:
    """(number of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def step_directories(directory: Path) -> list[int]:
    """Every directory named as a step, whole or not."""
    try:
        return sorted(
            int(entry.name) for entry in directory.iterdir() if _STEP.fullmatch(entry.name) and entry.is_dir()
        )
    except FileNotFoundError:
        return []


def valid_manifests(directory: Path) -> dict[int, Manifest]:
    """The valid manifests of a checkpoints directory by step."""
    found = {}
    for step in step_directories(directory):
        try:
            found[step] = manifests.read(directory / str(step))
        except DamagedError:
            continue
    return found


def set_aside(path: Path) -> str:
    """Rename a damaged step so that a later save finds its name free; returns its name now."""
    number, aside = 1, path.with_name(f"{path.name}.corrupt")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt.{number}")
    with atomic.disk_errors(path, doing="rename"):
        path.rename(aside)
    return aside.name
