"""Saves one checkpoint after the other until it is killed: the victim of `test_checkpoint.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.train.checkpoint import Checkpoints


def state_of(step: int) -> dict[str, Any]:
    """A state that can be told from its step, of a megabyte, so that a kill often falls inside a save."""
    kernel = jnp.arange(250_000, dtype=jnp.int32) * (2 * step + 1)
    return {"params": {"kernel": kernel}, "step": jnp.int32(step), "key": jax.random.key(step)}


def main(directory: Path) -> None:
    """Go on from the newest step; print each step when its save has begun."""
    with Checkpoints(directory, keep=2, best_mode="max", fingerprints={}) as writer:
        step = writer.restore(jax.eval_shape(lambda: state_of(0))).step if writer.exists() else 0
        while True:
            step += 1
            writer.save(step, state_of(step), {"next": step}, best_value=-abs(step - 7.0))
            print(step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
