"""FLOPs counted on jaxprs, against products worked out by hand and against the formula of a whole step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxdistill import models
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.models.splash import splash_attention
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step
from jaxdistill.train.flops import jaxpr_matmul_flops, matmul_flops, matmuls

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))
PRODUCT = 2 * 3 * 4 * 5


def test_products_with_batch_axes():
    assert matmul_flops(jnp.matmul, A, B) == PRODUCT
    stacked = jax.ShapeDtypeStruct((7, 3, 4), jnp.float32), jax.ShapeDtypeStruct((7, 4, 5), jnp.float32)
    assert matmul_flops(jax.vmap(jnp.matmul), *stacked) == 7 * PRODUCT
    assert matmul_flops(lambda a, b: jnp.einsum("bik,bkj->ij", a, b), *stacked) == 7 * PRODUCT


def test_a_scan_counts_each_turn_and_a_gradient_twice_the_product():
    def turns(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=6)[0].sum()

    x, w = jnp.ones((2, 5)), jnp.ones((5, 5))
    assert matmul_flops(turns, x, w) == 6 * 2 * 2 * 5 * 5
    assert matmul_flops(jax.jit(jax.grad(turns, argnums=(0, 1))), x, w) == 3 * 6 * 2 * 2 * 5 * 5


def test_what_is_not_used_is_not_counted():
    def dead(a, b):
        _ = a @ b
        return a.sum()

    assert matmul_flops(jax.jit(dead), A, B) == 0


def test_of_branches_the_dearest_counts_and_a_while_loop_is_refused():
    def either(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: (a @ b).sum(), lambda: a.sum())

    def endless(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    assert matmul_flops(either, A, B) == PRODUCT
    with pytest.raises(ValueError, match="while_loop"):
        matmul_flops(endless, jnp.ones((2, 2)))
    assert matmul_flops(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, x), 0) == 0


@pytest.mark.parametrize("spread", [False, True])
def test_shards_are_counted_on_every_device(spread):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data" if spread else None)
    function = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows, check_vma=False)
    whole = 2 * 16 * 4 * 5
    assert matmul_flops(function, jnp.ones((16, 4)), B) == (whole if spread else 8 * whole)


def test_a_kernel_is_counted_over_its_grid():
    shape = jax.ShapeDtypeStruct((2, 128, 4, 32), jnp.float32)
    count = matmul_flops(lambda q, k, v: splash_attention(q, k, v, None, interpret=True), shape, shape, shape)
    assert count == 2 * 2 * 2 * 4 * 128 * 128 * 32  # scores and context, over one block


HIDDEN, LAYERS, VOCAB, ROWS, LENGTH = 16, 3, 64, 8, 12
LLAMA = models.config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 40,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    }
)


def by_formula(layers: int, *, passes: int) -> int:
    """2 FLOPs a token for each weight outside the embeddings, and the full square of attention: forward passes."""
    weights = layers * (HIDDEN * HIDDEN * 2 + HIDDEN * HIDDEN // 2 * 2 + 3 * HIDDEN * 40) + HIDDEN * VOCAB
    attention = layers * 2 * 2 * HIDDEN * LENGTH
    return passes * ROWS * LENGTH * (2 * weights + attention)


@pytest.mark.parametrize(("data", "accumulate", "fused"), [(1, 1, "off"), (4, 2, "off"), (1, 1, "on")])
def test_a_step_is_three_students_and_one_teacher(data, accumulate, fused):
    student = models.build(LLAMA, task="causal_lm")
    teacher = models.build(dataclasses.replace(LLAMA, num_hidden_layers=5), task="causal_lm")
    terms = (DivergenceTerm("forward_kl", weight=0.7), CrossEntropyTerm("cross_entropy", weight=0.3))
    step = make_train_step(
        student=student,
        teachers=[OnlineTeacher(teacher)],
        objective=make_objective(terms, (1.0,), fused=fused),
        optimizer=optax.sgd(0.1),
        mesh=make_mesh(ParallelConfig(data=data)),
        accumulate=accumulate,
    )
    state = jax.eval_shape(lambda: init_state(student, optax.sgd(0.1), jax.random.key(0)))
    tokens = np.zeros((ROWS, LENGTH), np.int32)
    batch = {
        "input_ids": tokens,
        "labels": tokens,
        "segment_ids": tokens + 1,
        "positions": tokens,
        "example_id": tokens[:, 0],
    }
    params = [models.parameter_shapes(teacher)]
    count = jaxpr_matmul_flops(step.jaxpr(state, params, batch))
    assert count == by_formula(LAYERS, passes=3) + by_formula(5, passes=1)


def test_products_are_told_apart_and_counted():
    def function(x, w):
        y = jax.lax.scan(lambda carry, _: (carry @ w, None), x, None, length=3)[0]
        return y @ w + (x.T @ x)[:1]

    products = matmuls(jax.make_jaxpr(function)(jnp.ones((5, 4)), jnp.ones((4, 4))))
    assert sorted((product.left[0], times, product.flops) for product, times in products.items()) == [
        ((4, 5), 1, 2 * 4 * 5 * 4),
        ((5, 4), 4, 2 * 5 * 4 * 4),
    ]
