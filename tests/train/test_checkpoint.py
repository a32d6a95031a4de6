"""Checkpoints come back bitwise, on whatever devices, and never half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import endless_saves
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from endless_saves import state_of
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill.errors import CheckpointError, ExternalError
from jaxdistill.train.checkpoint import Checkpoints, list_steps, load_params
from jaxdistill.train.state import TrainState, init_state

OPTIMIZER = optax.sgd(1e-2, momentum=0.9)
FINGERPRINTS = {"data": "d" * 64, "config": "c" * 64}


def params(width: int = 8) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "encoder": {"layers": {"kernel": jax.random.normal(keys[0], (2, width, width))}},
        "classifier": {"kernel": jax.random.normal(keys[1], (width, 3)), "bias": jnp.zeros((3,), jnp.bfloat16)},
    }


def fresh(width: int = 8, sharding: Any = None) -> TrainState:
    state = init_state(params(width), OPTIMIZER, jax.random.key(5))
    return state if sharding is None else jax.device_put(state, sharding)


@jax.jit
def advance(state: TrainState) -> TrainState:
    """A made-up update: different and not constant in every leaf, dropout included."""
    key = jax.random.fold_in(state.key, state.step)
    grads = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape, p.dtype), state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    return replace(state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)


donating_advance = jax.jit(advance, donate_argnums=0)


def on_host(tree: Any) -> list[np.ndarray]:
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [np.array(leaf, copy=True) for leaf in leaves]


def assert_bitwise(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(on_host(left), on_host(right), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def checkpoints(directory: Path, *, keep: int = 2, best_mode: Any = "max", fingerprints: Any = None) -> Checkpoints:
    return Checkpoints(
        directory, keep=keep, best_mode=best_mode, fingerprints=FINGERPRINTS if fingerprints is None else fingerprints
    )


def save_steps(directory: Path, steps: int, *, keep: int = 9) -> dict[int, TrainState]:
    states, state = {}, fresh()
    with checkpoints(directory, keep=keep) as writer:
        for step in range(1, steps + 1):
            state = advance(state)
            states[step] = state
            writer.save(step, state, {"next": step}, extra={"history": [0.5] * step})
    return states


def largest_file(directory: Path) -> Path:
    """The largest of the files that hold arrays."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return max(files, key=lambda path: path.stat().st_size)


def test_everything_comes_back_bitwise_and_training_goes_on_the_same(tmp_path: Path):
    states = save_steps(tmp_path, 3)
    with checkpoints(tmp_path) as reader:
        restored = reader.restore(jax.eval_shape(fresh))
    assert restored.step == 3
    assert restored.data_state == {"next": 3}
    assert restored.extra == {"history": [0.5, 0.5, 0.5]}
    assert restored.warnings == ()
    assert restored.state.key.dtype == states[3].key.dtype
    assert_bitwise(restored.state, states[3])
    assert_bitwise(donating_advance(donating_advance(restored.state)), advance(advance(states[3])))


def test_a_save_is_not_touched_by_the_donation_of_its_state(tmp_path: Path):
    state = donating_advance(fresh())
    with checkpoints(tmp_path, keep=9) as writer:
        expected = {}
        for step in range(1, 5):
            expected[step] = on_host(state)
            writer.save(step, state, None)
            for _ in range(5):
                state = donating_advance(state)
        for step, leaves in expected.items():
            writer.wait()
            found = on_host(writer.restore(jax.eval_shape(fresh), step=step).state)
            assert [leaf.tobytes() for leaf in found] == [leaf.tobytes() for leaf in leaves]


def test_the_caller_may_change_what_it_gave(tmp_path: Path):
    extra, data_state = {"tally": {"examples": 1}}, {"next": 1}
    with checkpoints(tmp_path) as writer:
        writer.save(1, fresh(), data_state, extra=extra)
        extra["tally"]["examples"], data_state["next"] = 2, 2
        restored = writer.restore(jax.eval_shape(fresh))
    assert restored.extra == {"tally": {"examples": 1}}
    assert restored.data_state == {"next": 1}


@pytest.mark.parametrize("data_state", [b"\x00\xffgrain", {"a": {"b": [1, 2]}, "base": None}, None])
def test_data_states_come_back(tmp_path: Path, data_state: Any):
    with checkpoints(tmp_path) as writer:
        writer.save(1, fresh(), data_state)
        assert writer.restore(jax.eval_shape(fresh)).data_state == data_state


def test_a_data_state_that_json_would_change_is_refused(tmp_path: Path):
    with checkpoints(tmp_path) as writer, pytest.raises(TypeError, match="does not survive JSON"):
        writer.save(1, fresh(), {"order": (1, 2)})


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_replicated_and_sharded_states_come_back_where_they_were_and_elsewhere(tmp_path: Path):
    replicated = NamedSharding(mesh(), PartitionSpec())
    halves = NamedSharding(mesh(), PartitionSpec("data"))
    state = fresh(sharding=replicated)
    kernel = jax.device_put(state.params["classifier"]["kernel"], halves)
    state = replace(state, params={**state.params, "classifier": {**state.params["classifier"], "kernel": kernel}})
    with checkpoints(tmp_path) as writer:
        writer.save(1, state, None)
        same = writer.restore(state).state
        alone = writer.restore(jax.eval_shape(fresh)).state
    assert_bitwise(same, state)
    assert_bitwise(alone, state)
    for found, wanted in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
        assert found.sharding == wanted.sharding
    assert all(len(leaf.devices()) == 1 and not leaf.committed for leaf in jax.tree.leaves(alone.params))


def test_a_restored_state_is_not_traced_again(tmp_path: Path):
    traces = []

    @jax.jit
    def step(state: TrainState) -> TrainState:
        traces.append(1)
        return replace(state, step=state.step + 1)

    state = step(fresh(sharding=NamedSharding(mesh(), PartitionSpec())))
    with checkpoints(tmp_path) as writer:
        writer.save(1, state, None)
        step(writer.restore(state).state)
    assert len(traces) == 1


def test_parameters_alone(tmp_path: Path):
    states = save_steps(tmp_path, 2)
    assert_bitwise(load_params(tmp_path / "2"), states[2].params)


def test_the_newest_and_the_best_stay(tmp_path: Path):
    values = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.7, 5: float("nan"), 6: None, 7: 0.8}
    with checkpoints(tmp_path, keep=2) as writer:
        for step, value in values.items():
            writer.save(step, fresh(), None, best_value=value, metrics={"accuracy": 0.0 if value is None else value})
        writer.wait()
        assert writer.steps() == [2, 6, 7]  # of the equal 2 and 3 the earlier
        assert writer.best() == 2
        assert writer.latest() == 7
        assert writer.restore(jax.eval_shape(fresh), step=2).metrics == {"accuracy": 0.9}
    with checkpoints(tmp_path, keep=2, best_mode="min") as writer:
        assert writer.best() == 7
    with checkpoints(tmp_path, keep=1, best_mode=None) as writer:
        assert writer.best() is None
        writer.save(8, fresh(), None)
    assert list_steps(tmp_path) == [8]


def test_what_a_killed_save_left_is_removed_and_never_listed(tmp_path: Path):
    save_steps(tmp_path, 1)
    for name in ("2.saving", "2.saving.orbax-checkpoint-tmp", "1.deleting", ".manifest.json.77-1.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_bytes(b"half")
    assert list_steps(tmp_path) == [1]
    with checkpoints(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_step_may_be_saved_again(tmp_path: Path):
    save_steps(tmp_path, 2)
    other = advance(advance(advance(fresh())))
    with checkpoints(tmp_path) as writer:
        writer.save(2, other, None)
        assert_bitwise(writer.restore(jax.eval_shape(fresh)).state, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "truncated"), (flip_one_bit, "corrupted"), (Path.unlink, "No such file")],
)
def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path: Path, damage: Any, said: str):
    states = save_steps(tmp_path, 3)
    victim = largest_file(tmp_path / "3")
    damage(victim)
    with pytest.raises(CheckpointError, match=said):
        load_params(tmp_path / "3")
    with checkpoints(tmp_path) as reader:
        with pytest.raises(CheckpointError, match=said):
            reader.restore(jax.eval_shape(fresh), step=3)
        restored = reader.restore(jax.eval_shape(fresh))
        assert restored.step == 2
        assert_bitwise(restored.state, states[2])
        (warning,) = restored.warnings
        assert str(victim) in warning
        assert said in warning
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3.corrupt"]
        reader.save(3, states[3], None)
        assert_bitwise(reader.restore(jax.eval_shape(fresh)).state, states[3])


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, Path.unlink, lambda path: path.write_text("{}")])
def test_without_its_manifest_a_step_is_not_trusted(tmp_path: Path, damage: Any):
    save_steps(tmp_path, 2)
    damage(tmp_path / "2" / "manifest.json")
    with checkpoints(tmp_path) as reader:
        assert reader.steps() == [1]
        restored = reader.restore(jax.eval_shape(fresh))
    assert restored.step == 1
    assert "2/manifest.json" in restored.warnings[0]


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path):
    from jaxdistill.train import manifest

    save_steps(tmp_path / "run", 1)
    (tmp_path / "secret").write_bytes(b"x")
    found = manifest.read(tmp_path / "run" / "1")
    manifest.write(tmp_path / "run" / "1", replace(found, files={"../../secret": [1, "0" * 64]}))
    with pytest.raises(CheckpointError, match="outside its directory"):
        load_params(tmp_path / "run" / "1")


def test_when_every_step_is_damaged_nothing_is_moved(tmp_path: Path):
    save_steps(tmp_path, 2)
    for step in ("1", "2"):
        truncate(largest_file(tmp_path / step))
    with checkpoints(tmp_path) as reader:
        assert reader.exists()
        with pytest.raises(CheckpointError, match="no whole checkpoint") as caught:
            reader.restore(jax.eval_shape(fresh))
    assert all(f"{tmp_path}/{step}/" in str(caught.value) for step in ("1", "2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_empty_directory_has_nothing_to_restore(tmp_path: Path):
    with checkpoints(tmp_path / "new") as reader:
        assert not reader.exists()
        assert (reader.steps(), reader.latest(), reader.best()) == ([], None, None)
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            reader.restore(jax.eval_shape(fresh))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_params(tmp_path / "new" / "1")


def test_another_architecture_is_refused_leaf_by_leaf(tmp_path: Path):
    save_steps(tmp_path, 1)
    template = jax.eval_shape(lambda: fresh(width=4))
    more = replace(template, params={**template.params, "pooler": jnp.zeros((2,))})
    with checkpoints(tmp_path) as reader, pytest.raises(CheckpointError, match="another architecture") as caught:
        reader.restore(more)
    text = str(caught.value)
    assert "params.encoder.layers.kernel is float32[2,8,8] in the checkpoint, float32[2,4,4] in this model" in text
    assert "params.pooler float32[2] is not in the checkpoint" in text
    assert "params.classifier.bias" not in text
    assert "\n" not in text


def test_other_fingerprints_are_refused_by_name(tmp_path: Path):
    save_steps(tmp_path, 1)
    other = {"data": "e" * 64, "config": "c" * 64, "teacher": "t" * 64}
    with checkpoints(tmp_path, fingerprints=other) as reader, pytest.raises(CheckpointError) as caught:
        reader.restore(jax.eval_shape(fresh))
    assert f"data ({'d' * 12} → {'e' * 12}), teacher (none → {'t' * 12})" in str(caught.value)
    assert "config (" not in str(caught.value)


def test_a_failed_save_is_reported_by_the_next_one_and_leaves_no_trace(tmp_path: Path):
    save_steps(tmp_path / "run", 1)
    with checkpoints(tmp_path / "run") as writer:
        (tmp_path / "run").rename(tmp_path / "away")
        (tmp_path / "run").write_text("a file stands in the way")
        writer.save(2, fresh(), None)
        with pytest.raises(ExternalError, match="cannot save the checkpoint") as caught:
            writer.save(3, fresh(), None)
        assert "\n" not in str(caught.value)
    assert list_steps(tmp_path / "away") == [1]


def test_a_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExternalError, match="cannot write checkpoints in"):
        checkpoints(tmp_path / "file" / "checkpoints")


def test_orbax_alone_can_read_it(tmp_path: Path):
    """The layout is Orbax's own: nothing of ours is needed to get the parameters out."""
    import orbax.checkpoint as ocp

    states = save_steps(tmp_path, 1)
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "1")
    assert_bitwise(tree["params"], states[1].params)
    assert json.loads((tmp_path / "1" / "manifest.json").read_text())["manifest"]["step"] == 1


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_whole_step(tmp_path: Path):
    rng = np.random.default_rng(0)
    committed = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, endless_saves.__file__, str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        for _ in range(int(rng.integers(2, 6))):  # a printed step: the one before it is committed
            started = int(process.stdout.readline())
        try:
            process.wait(timeout=float(rng.uniform(0, 0.1)))
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.wait() == -9
        with checkpoints(tmp_path / "run", fingerprints={}) as reader:
            restored = reader.restore(jax.eval_shape(lambda: state_of(0)))
        assert restored.warnings == ()
        assert restored.step >= max(started - 1, committed)
        assert_bitwise(restored.state, state_of(restored.step))
        assert restored.data_state == {"next": restored.step}
        committed = restored.step
