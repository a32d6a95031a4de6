"""The same training on every mesh: losses and parameters, where the arrays lie, and what travels between devices."""

from __future__ import annotations

import functools
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sharded_training import FAMILIES, MESHES, SGD, TEACHER, make_batch, make_step, start, train

from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.models.axes import logical_axes
from jaxdistill.train import init_state, make_train_step

pytestmark = pytest.mark.slow

STEPS = range(5)


@functools.cache
def trained(family, name, optimizer, fused="off"):
    step, made = make_step(family, MESHES[name], fused=fused, optimizer=SGD if optimizer == "sgd" else None)
    state, losses = train(family, step, *start(family, step, made), STEPS)
    assert step.trace_count == 1
    return jax.tree.map(np.asarray, state.params), losses


def assert_same(got, expected, *, optimizer):
    """Losses to 1e-5, parameters to 1e-5 of each array's largest value."""
    params, losses = expected
    np.testing.assert_allclose(got[1], losses, rtol=1e-5)
    for path, leaf in jax.tree.leaves_with_path(params):
        found = dict(jax.tree.leaves_with_path(got[0]))[path]
        if optimizer == "adamw" and jax.tree_util.keystr(path).endswith("['qkv']['bias']"):
            # the gradient of keys' biases is 0, and AdamW makes steps of what rounding leaves of it
            found, leaf = found[:, [0, 2]], leaf[:, [0, 2]]
        np.testing.assert_allclose(found, leaf, rtol=0, atol=1e-5 * np.abs(leaf).max(), err_msg=str(path))


@pytest.mark.parametrize(
    ("family", "mesh", "optimizer"),
    [
        *(("llama", mesh, "sgd") for mesh in MESHES if mesh != "1x1x1"),
        ("llama", "2x2x2", "adamw"),
        pytest.param("bert", "8x1x1", "adamw", marks=pytest.mark.long),
        ("bert", "2x2x2", "adamw"),
    ],
)
def test_every_mesh_trains_the_same(family, mesh, optimizer):
    expected = trained(family, "1x1x1", optimizer)
    assert expected[1][-1] < expected[1][0]
    assert_same(trained(family, mesh, optimizer), expected, optimizer=optimizer)


@pytest.mark.parametrize("mesh", ["1x1x1", "8x1x1", "1x8x1", "2x2x2"])
def test_every_mesh_trains_the_same_without_logits(mesh):
    assert_same(trained("llama", mesh, "sgd", "on"), trained("llama", "1x1x1", "sgd"), optimizer="sgd")


@pytest.mark.parametrize("accumulate", [2])
def test_micro_batches_keep_the_rows_where_they_are(accumulate):
    step, optimizer = make_step("llama", MESHES["2x2x2"], fused="on", optimizer=SGD, accumulate=accumulate)
    state, losses = train("llama", step, *start("llama", step, optimizer), STEPS)
    assert_same((jax.tree.map(np.asarray, state.params), losses), trained("llama", "1x1x1", "sgd"), optimizer="sgd")


def expected_spec(names, *, over):
    """What the rules say on a mesh whose axes divide everything."""
    axes = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
    return PartitionSpec(*(axes[name] if axes.get(name) in over else None for name in names))


def assert_lies(tree, axes, *, over=("fsdp", "tensor")):
    names = dict(jax.tree.leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple)))
    shared = 0
    for path, leaf in jax.tree.leaves_with_path(tree):
        spec = expected_spec(names[path], over=over)
        assert leaf.sharding.is_equivalent_to(jax.NamedSharding(leaf.sharding.mesh, spec), leaf.ndim), path
        shared += not leaf.sharding.is_fully_replicated
    assert bool(shared) == bool(over)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_parameters_and_moments_lie_by_their_axes_before_and_after_a_step(family):
    step, optimizer = make_step(family, MESHES["2x2x2"])
    state, teacher = start(family, step, optimizer)
    abstract = step.abstract_state()
    for _ in range(2):
        axes = logical_axes(FAMILIES[family]())
        for tree in (state.params, state.opt_state.mu, state.opt_state.nu):
            assert_lies(tree, axes)
        for scalar in (state.step, state.key, state.skipped, state.opt_state.count):
            assert scalar.sharding.is_fully_replicated
        for wanted, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            assert (wanted.shape, wanted.dtype, wanted.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)
        state, metrics = step(state, teacher, make_batch(family, 0))
    assert metrics["loss"][0].sharding.is_fully_replicated
    held = {
        leaf.nbytes / sum(shard.data.nbytes for shard in leaf.addressable_shards[:1])
        for leaf in jax.tree.leaves(state.params["embeddings"]["word"])
    }
    assert held == {4.0}


@pytest.mark.parametrize(
    ("layout", "over"), [("same", ("fsdp", "tensor")), ("replicated", ()), ("fsdp", ("fsdp",)), ("tensor", ("tensor",))]
)
def test_a_teacher_has_a_layout_of_its_own(layout, over):
    step, optimizer = make_step("llama", MESHES["2x2x2"], fused="on", optimizer=SGD, teacher_layout=layout)
    state, (teacher,) = start("llama", step, optimizer)
    axes = logical_axes(FAMILIES["llama"](TEACHER))
    layers = teacher["decoder"]["layers"]
    if isinstance(layers, tuple):  # apart, as CPUs run them fastest
        apart = jax.tree.map(
            lambda names: names[1:], axes["decoder"]["layers"], is_leaf=lambda leaf: isinstance(leaf, tuple)
        )
        axes = {**axes, "decoder": {"layers": tuple(apart for _ in layers)}}
    assert_lies(teacher, axes, over=over)
    _, losses = train("llama", step, state, (teacher,), range(1))
    np.testing.assert_allclose(losses, trained("llama", "1x1x1", "sgd")[1][:1], rtol=1e-5)


def test_a_model_of_somebody_elses_is_whole_on_every_device():
    class Wrapped:
        """Not a `models.Model`, though it has one."""

        def __init__(self):
            self.inner = FAMILIES["bert"]()

        def init(self, key):
            return self.inner.init(key)

        def apply(self, params, batch, outputs=("logits",), key=None):
            return self.inner.apply(params, batch, outputs, key)

    from sharded_training import TERMS

    step, _ = make_step("bert", MESHES["2x2x2"], optimizer=SGD)
    wrapped = make_train_step(
        student=Wrapped(),
        teachers=[OnlineTeacher(FAMILIES["bert"](TEACHER))],
        objective=make_objective(TERMS, [1.0]),
        optimizer=SGD,
        mesh=step.mesh,
    )
    state = init_state(Wrapped(), SGD, jax.random.key(0), step.mesh)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    _, teacher = start("bert", step, SGD)
    state, losses = train("bert", wrapped, state, teacher, range(1))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(losses, trained("bert", "1x1x1", "sgd")[1][:1], rtol=1e-5)


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(text):
    """(kind, sizes) of every array that passes between devices."""
    for line in text.splitlines():
        if found := COLLECTIVE.search(line):
            for sizes in re.findall(r"\w+\[([\d,]*)\]", found[1]):
                yield found[2], tuple(int(size) for size in sizes.split(",") if size)


@pytest.mark.parametrize("mesh", ["8x1x1", "1x8x1", "2x2x2"])
def test_no_logits_pass_between_devices(mesh):
    step, optimizer = make_step("llama", MESHES[mesh], fused="on")
    text = step.lower(*start("llama", step, optimizer), make_batch("llama", 0)).compile().as_text()
    found = list(collectives(text))
    assert found
    for kind, sizes in found:
        count = math.prod(sizes)
        # tokens × vocabulary is 53 times a power of two, and so is every part of it; nothing else is
        assert count % 53 or (count // 53) & (count // 53 - 1), (kind, sizes)


def test_weights_are_gathered_and_activations_stay():
    """Under fsdp what is gathered or exchanged is parameters, token ids, and the rows of the word table."""
    step, optimizer = make_step("llama", MESHES["1x8x1"], fused="on", optimizer=SGD)
    state, teacher = start("llama", step, optimizer)
    text = step.lower(state, teacher, make_batch("llama", 0)).compile().as_text()
    wide = {
        size for tree in (state.params, teacher) for leaf in jax.tree.leaves(tree) for size in (leaf.size, leaf[0].size)
    }
    for kind, sizes in collectives(text):
        if kind == "all-gather" and math.prod(sizes) > 16 * 8:  # rows × length: the ids
            assert math.prod(sizes) in wide, sizes
