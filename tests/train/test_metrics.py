"""Metrics leave the device once, and curves survive kills and resumes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import ConfigError, ExternalError
from jaxdistill.train.metrics import MetricsWriter, fetch


def of_step(loss: float, examples: int, ce: tuple[float, int], skipped: int = 0):
    """Metrics of one step as the step gives them: (sum, count), all zero but `skipped` if it was skipped."""
    count = 0 if skipped else examples
    return {
        "loss": (jnp.float32(0 if skipped else loss * examples), jnp.float32(count)),
        "ce": (jnp.float32(ce[0]), jnp.float32(ce[1])),
        "skipped": (jnp.float32(skipped), jnp.float32(1)),
    }


def test_fetched_means_weigh_every_example_alike():
    steps = [of_step(2.0, 32, (6.0, 4)), of_step(0, 32, (0, 0), skipped=1), of_step(5.0, 16, (3.0, 2))]
    means, skipped = fetch(steps)
    assert means == {"loss": pytest.approx((2.0 * 32 + 5.0 * 16) / 48), "ce": pytest.approx(1.5)}
    np.testing.assert_array_equal(skipped, [False, True, False])


def test_what_was_never_counted_is_not_a_number():
    means, skipped = fetch([of_step(1.0, 8, (0.0, 0))])
    assert math.isnan(means["ce"])
    assert not skipped.any()
    assert fetch([])[0] == {}


def test_fetched_sums_do_not_drift():
    """A thousand steps of the same mean give that mean: sums are added in float64."""
    means, _ = fetch([of_step(0.1, 1, (0.1, 1))] * 1000)
    assert means["loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_metrics_may_live_on_several_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    means, _ = fetch(jax.device_put([of_step(2.0, 32, (6.0, 4))], replicated))
    assert means["loss"] == pytest.approx(2.0)


def writer(directory: Path, resume_step: int = 0, *, tensorboard: bool = False) -> MetricsWriter:
    return MetricsWriter(directory, tensorboard=tensorboard, wandb=None, run_name="run", resume_step=resume_step)


def rows(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (directory / "metrics.jsonl").open()]


def test_every_row_is_valid_json_and_on_disk_at_once(tmp_path: Path):
    with writer(tmp_path) as log:
        log.write(50, "train", {"loss": 0.5, "ce": math.nan, "grad_norm": math.inf})
        log.write(50, "validation", {"accuracy": np.float64(0.75), "f1": np.float32(0.5)})
        assert rows(tmp_path) == [
            {"step": 50, "kind": "train", "loss": 0.5, "ce": None, "grad_norm": None},
            {"step": 50, "kind": "validation", "accuracy": 0.75, "f1": 0.5},
        ]


def test_a_resume_drops_what_came_after_its_checkpoint_and_a_torn_row(tmp_path: Path):
    with writer(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, "train", {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "kind": "tr')
    with writer(tmp_path, resume_step=20) as log:
        assert [row["step"] for row in rows(tmp_path)] == [10, 20]
        log.write(30, "train", {"loss": 0.0})
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]
    with writer(tmp_path):
        assert rows(tmp_path) == []


def test_tensorboard_gets_the_curves_and_forgets_what_was_overwritten(tmp_path: Path):
    """Read back from the event files: the resumed writer first purges the steps that come again."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with writer(tmp_path, tensorboard=True) as log:
        log.write(10, "train", {"loss": 0.5, "ce": math.nan})
        log.write(20, "train", {"loss": 0.25})
    with writer(tmp_path, resume_step=10, tensorboard=True) as log:
        log.write(20, "train", {"loss": 0.125})

    scalars, purges = [], []
    for path in (tmp_path / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.session_log.status == SessionLog.START:
                purges.append(event.step)
    assert sorted(scalars) == [(10, "train/loss", 0.5), (20, "train/loss", 0.125), (20, "train/loss", 0.25)]
    assert purges == [1, 11]


def test_wandb_that_is_not_installed_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxdistill\[wandb\]'"):
        MetricsWriter(tmp_path, tensorboard=False, wandb="project", run_name="run", resume_step=0)


def test_a_directory_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExternalError, match="cannot write"):
        writer(tmp_path / "file" / "stage")
