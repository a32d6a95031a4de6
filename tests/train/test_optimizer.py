"""AdamW against Optax's own, what it decays, and the schedules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdistill import models
from jaxdistill.config.schema import TrainConfig
from jaxdistill.errors import ConfigError
from jaxdistill.train import build_optimizer, init_state
from jaxdistill.train.adamw import guarded
from jaxdistill.train.optimizer import decay_mask

TRAIN = TrainConfig(steps=10, learning_rate=1e-2, weight_decay=0.1, warmup=0.2)


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": {"kernel": (4, 5), "bias": (2, 5)}, "norm": {"scale": (3,), "bias": (3,)}, "table": (6, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(0, scale, shape), jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )


@pytest.mark.parametrize("clip", [None, 1.0, 100.0])
def test_adamw_is_optaxs(clip):
    train = TrainConfig(**{**vars(TRAIN), "max_grad_norm": clip})
    ours, schedule = build_optimizer(train, 10)
    theirs = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, mask=decay_mask)
    if clip is not None:
        theirs = optax.chain(optax.clip_by_global_norm(clip), theirs)
    theirs = guarded(theirs)

    @jax.jit
    def advance(params, states, gradients):
        norm = optax.tree.norm(gradients)
        moved, kept = [], []
        for optimizer, params_, state in zip((ours, theirs), params, states, strict=True):
            updates, state = optimizer.update(gradients, state, params_, finite=jnp.bool_(True), grad_norm=norm)
            moved.append(jax.tree.map(jnp.add, params_, updates))
            kept.append(state)
        return moved, kept

    params = [tree(0), tree(0)]
    states = [optimizer.init(params[0]) for optimizer in (ours, theirs)]
    for step in range(10):
        params, states = advance(params, states, tree(step + 1, scale=0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7), *params)


def test_a_bfloat16_moment_moves_nearly_as_far():
    moved = {}
    for moment in ("float32", "bfloat16"):
        optimizer, _ = build_optimizer(TrainConfig(**{**vars(TRAIN), "moment": moment}), 10)
        params = start = tree(0)
        state = optimizer.init(params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.mu)} == {moment}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.nu)} == {"float32"}
        update, gradients = jax.jit(optimizer.update), tree(1, scale=0.5)
        norm = optax.tree.norm(gradients)
        for _ in range(10):
            updates, state = update(gradients, state, params, finite=jnp.bool_(True), grad_norm=norm)
            params = jax.tree.map(jnp.add, params, updates)
        moved[moment] = jax.tree.map(jnp.subtract, params, start)
    # each moment is rounded to eight bits once a step
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-4), *moved.values())


def test_an_update_that_is_not_finite_leaves_the_state_as_it_was():
    for optimizer in (build_optimizer(TRAIN, 10)[0], guarded(optax.adamw(1e-2))):
        state = optimizer.init(tree(0))
        gradients = jax.tree.map(lambda x: x * jnp.nan, tree(1))
        _, after = jax.jit(optimizer.update)(
            gradients, state, tree(0), finite=jnp.bool_(False), grad_norm=jnp.float32(jnp.nan)
        )
        jax.tree.map(np.testing.assert_array_equal, after, state)


def test_decay_spares_biases_and_norms_of_every_architecture_and_nothing_else():
    shape = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 8,
    }
    spared = set()
    for model_type in ("bert", "bert_hash", "distilbert", "roberta"):
        for task in ("classification", "masked_lm"):
            model = models.build({"model_type": model_type, **shape}, task=task)
            mask = decay_mask(models.parameter_shapes(model))
            for path, decays in jax.tree.leaves_with_path(mask):
                keys = [key.key for key in path]
                in_norm = any("norm" in key for key in keys)
                assert decays == (keys[-1] in ("kernel", "word", "word_table", "position", "token_type")), keys
                if not decays:
                    spared.add(keys[-1])
                    assert in_norm or keys[-1].endswith("bias")
    assert spared == {"bias", "scale", "decoder_bias"}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 - 0.5 * np.cos(np.pi / 4)]),
    ],
)
@pytest.mark.parametrize("warmup", [2, 1 / 3])
def test_schedules(schedule, expected, warmup):
    train = TrainConfig(steps=6, learning_rate=1e-3, schedule=schedule, warmup=warmup)
    _, rate = build_optimizer(train, 6)
    np.testing.assert_allclose([float(rate(step)) for step in range(6)], np.multiply(expected, 1e-3), rtol=1e-5)
    if schedule != "constant":
        assert float(rate(6)) < 1e-9


def test_without_warmup_the_first_update_has_the_whole_rate():
    _, rate = build_optimizer(TrainConfig(steps=6, learning_rate=1e-3, warmup=0), 6)
    np.testing.assert_allclose(rate(0), 1e-3)


def test_a_warmup_longer_than_the_stage_is_refused():
    with pytest.raises(ConfigError, match=r"train\.warmup: 50 warm-up steps do not fit into a stage of 20"):
        build_optimizer(TrainConfig(steps=20, warmup=50), 20)


def test_the_state_starts_at_zero_whatever_it_is_made_from():
    optimizer, _ = build_optimizer(TRAIN, 10)
    state = init_state(tree(0), optimizer, jax.random.key(0))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (0, 0, 0)
    jax.tree.map(np.testing.assert_array_equal, state.params, tree(0))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(state.opt_state))
