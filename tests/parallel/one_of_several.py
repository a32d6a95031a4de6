"""One process of a job on loopback: trains, saves every step and says its losses. Run by `test_two_processes.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from sharded_training import SGD, make_batch, make_step, start

from jaxdistill.parallel import distributed, host_share
from jaxdistill.parallel.hosts import exchange, on_lead_host
from jaxdistill.train.checkpoint import Checkpoints


def checkpoints(directory: Path) -> Checkpoints:
    """Those of the training here."""
    return Checkpoints(directory, keep=9, best_mode=None, fingerprints={"data": "made up"})


def main(directory: Path, sizes: tuple[int, int, int], steps: int) -> None:
    """Train up to `steps` on the mesh of all processes, each giving its own rows of every batch."""
    jax.config.update("jax_num_cpu_devices", 2)
    distributed.start()
    distributed.start()  # the second time is nothing
    assert jax.device_count() == 2 * jax.process_count() == 4
    assert exchange(jax.process_index()) == [0, 1]
    assert on_lead_host(lambda: {"lead": jax.process_index()}) == {"lead": 0}
    step, optimizer = make_step("llama", sizes, fused="on", optimizer=SGD)
    state, teacher = start("llama", step, optimizer)
    share, of = host_share(step.mesh)
    with checkpoints(directory) as saved:
        assert not saved.exists()
        for number in range(steps):
            batch = make_batch("llama", number)
            rows = len(batch["input_ids"]) // of
            own = {name: values[share * rows : (share + 1) * rows] for name, values in batch.items()}
            state, metrics = step(state, teacher, own)
            saved.save(number + 1, state, {"next": number + 1})
            total, count = (float(np.asarray(value)) for value in metrics["loss"])
            print(json.dumps({"step": number + 1, "loss": total / count, "share": [share, of]}), flush=True)
        restored = saved.restore(step.abstract_state())
        assert restored.step == steps
        for ours, theirs in zip(jax.tree.leaves(restored.state.params), jax.tree.leaves(state.params), strict=True):
            assert ours.sharding == theirs.sharding
            for a, b in zip(ours.addressable_shards, theirs.addressable_shards, strict=True):
                np.testing.assert_array_equal(a.data, b.data)
    print(json.dumps({"restored": steps}), flush=True)
    sys.stdin.read()  # until it is killed, or nobody is there any more


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(int(size) for size in sys.argv[2].split("x")), int(sys.argv[3]))
