"""A checkpoint made on one mesh goes on on another, every array read straight to where it belongs."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from sharded_training import FAMILIES, MESHES, make_step, start, train

from jaxdistill.errors import CheckpointError
from jaxdistill.models.axes import param_shardings
from jaxdistill.train.checkpoint import Checkpoints, load_params

pytestmark = pytest.mark.slow


def checkpoints(directory: Path) -> Checkpoints:
    return Checkpoints(directory, keep=9, best_mode=None, fingerprints={})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(directory, losses of steps 2 and 3 had it gone on) of a state saved after two steps on 2×2×2."""
    directory = tmp_path_factory.mktemp("saved")
    step, optimizer = make_step("llama", MESHES["2x2x2"], fused="on")
    state, teacher = start("llama", step, optimizer)
    state, _ = train("llama", step, state, teacher, range(2))
    with checkpoints(directory) as writer:
        writer.save(2, state, {"next": 2})
    return directory, train("llama", step, state, teacher, range(2, 4))[1]


@pytest.mark.parametrize("mesh", ["1x1x1", "1x8x1", "2x2x2"])
def test_goes_on_on_another_mesh(saved, mesh):
    directory, expected = saved
    step, optimizer = make_step("llama", MESHES[mesh], fused="on")
    _, teacher = start("llama", step, optimizer)
    template = step.abstract_state()
    with checkpoints(directory) as reader:
        state = reader.restore(template).state
    for wanted, leaf in zip(jax.tree.leaves(template), jax.tree.leaves(state), strict=True):
        assert leaf.sharding == wanted.sharding
    assert step.put_state(state).params["norm"]["scale"] is state.params["norm"]["scale"]
    _, losses = train("llama", step, state, teacher, range(2, 4))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert step.trace_count == 1


def test_parameters_alone_on_another_mesh(saved):
    directory, _ = saved
    model = FAMILIES["llama"]()
    step, _ = make_step("llama", MESHES["1x8x1"])
    shardings = param_shardings(model, step.mesh)
    whole = load_params(directory / "2")
    spread = load_params(directory / "2", sharding=shardings)
    jax.tree.map(np.testing.assert_array_equal, whole, spread)
    assert jax.tree.map(lambda leaf: leaf.sharding, spread) == shardings
    named = load_params(
        directory / "2", sharding=lambda shapes: jax.tree.map(lambda _: step.abstract_state().step.sharding, shapes)
    )
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(named))


def test_shardings_of_another_model_are_refused(saved):
    directory, _ = saved
    step, _ = make_step("llama", MESHES["1x8x1"])
    with pytest.raises(CheckpointError, match="not those to be placed"):
        load_params(directory / "2", sharding=param_shardings(FAMILIES["bert"](), step.mesh))
