"""Padding never matters, empty rows stay finite, and bfloat16 keeps float32 where it must."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_reading import equations
from tiny_encoders import BERT_SHAPE, batch, jit, pad

from jaxdistill import models
from jaxdistill.errors import ModelError

ARCHITECTURES = ("bert", "bert_hash", "roberta")


def make(architecture, **how):
    shape = BERT_SHAPE | {"max_position_embeddings": 26, "num_hidden_layers": 1}
    model = models.build({"model_type": architecture, **shape}, **how)
    return model, jit(model.init)(jax.random.key(0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_nothing(architecture):
    """More padding with any content: logits and gradients of every parameter."""
    model, params = make(architecture)
    of = batch(architecture)

    @jit
    def run(params, of):
        return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply(p, of)["logits"])))(params)

    value, gradients = run(params, of)
    padded_value, padded_gradients = run(params, pad(of, 20))
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), padded_gradients, gradients)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_mask_of_booleans(architecture):
    model, params = make(architecture)
    of = batch(architecture)
    apply = jit(lambda p, b: model.apply(p, b)["logits"])
    expected = apply(params, of)
    of["attention_mask"] = of["attention_mask"].astype(bool)
    np.testing.assert_array_equal(apply(params, of), expected)


def test_a_batch_without_a_mask_is_refused():
    model, params = make("bert")
    with pytest.raises(ModelError, match="attention_mask missing"):
        model.apply(params, {"input_ids": batch()["input_ids"]})


def test_filler_rows_are_finite_and_change_no_other():
    model, params = make("bert")
    of = batch()
    filled = {name: np.concatenate([value, np.zeros_like(value[:2])]) for name, value in of.items()}
    filled["example_id"][-2:] = -1

    @jit
    def run(params, of, weights):
        def loss(p):
            logits = model.apply(p, of, key=jax.random.key(0))["logits"]
            return jnp.sum(jnp.sin(logits) * weights[:, None]), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = run(params, of, np.ones(5, np.float32))
    filled_gradients, filled_logits = run(params, filled, np.array([1, 1, 1, 1, 1, 0, 0], np.float32))
    assert np.isfinite(filled_logits).all()
    np.testing.assert_allclose(filled_logits[:5], logits, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), filled_gradients, gradients)


@pytest.mark.parametrize("task", ["classification", "masked_lm"])
def test_bfloat16_keeps_float32_where_it_must(task):
    model, params = make("bert", task=task, dtype=jnp.bfloat16)
    exact = models.build(model.config, task=task)
    of = batch()
    out = jit(lambda p, b: model.apply(p, b, ("logits", "last_hidden")))(params, of)
    assert out["logits"].dtype == jnp.float32
    assert out["last_hidden"].dtype == jnp.bfloat16
    expected = jit(exact.apply)(params, of)["logits"]
    assert np.abs(out["logits"] - expected).max() < 0.05 * np.abs(expected).max()
    in_float32 = {"exp", "rsqrt", "erf", "tanh", "reduce_max"} - ({"tanh"} if task == "classification" else set())
    for equation in equations(lambda p, b: model.apply(p, b), params, of):
        if equation.primitive.name in in_float32:
            assert equation.invars[0].aval.dtype == jnp.float32, equation
        if equation.primitive.name == "dot_general" and equation.invars[0].aval.shape[-1] != 2:
            head = equation.outvars[0].aval.shape[-1] == 2
            assert head or equation.invars[0].aval.dtype == jnp.bfloat16, equation


def test_parameters_and_gradients_stay_float32_in_bfloat16():
    model, params = make("bert", dtype=jnp.bfloat16)
    of = batch()
    gradients = jit(jax.grad(lambda p: jnp.sum(model.apply(p, of, key=jax.random.key(0))["logits"])))(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, gradients))} == {"float32"}


@pytest.mark.parametrize(("architecture", "limit"), [("bert", 26), ("roberta", 24)])
def test_sequence_longer_than_the_positions(architecture, limit):
    model, params = make(architecture)
    assert models.positions(model.config) == limit
    with pytest.raises(ModelError, match=f"27 tokens.*{limit} positions"):
        model.apply(params, batch(length=27))


def test_fresh_parameters():
    """Drawn from the configuration's deviation; norms 1 and 0, biases 0; the same for the same key."""
    model = models.build(BERT_SHAPE | {"model_type": "bert", "hidden_size": 64, "initializer_range": 0.05})
    init = jit(model.init)
    params, again, other = init(jax.random.key(1)), init(jax.random.key(1)), init(jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    layers = params["encoder"]["layers"]
    drawn = (layers["intermediate"]["kernel"], layers["attention"]["qkv"]["kernel"], params["embeddings"]["word"])
    for kernel in drawn:
        assert abs(float(jnp.std(kernel)) - 0.05) < 0.003
        assert abs(float(jnp.mean(kernel))) < 0.003
    assert not np.array_equal(layers["intermediate"]["kernel"][0], layers["intermediate"]["kernel"][1])
    assert not np.array_equal(params["pooler"]["kernel"], other["pooler"]["kernel"])
    np.testing.assert_array_equal(layers["output_norm"]["scale"], 1)
    np.testing.assert_array_equal(layers["output"]["bias"], 0)
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    random = values[(values != 0) & (values != 1)]
    assert len(np.unique(random)) > 0.99 * len(random)  # no two leaves share their numbers


def test_counting():
    shapes = models.parameter_shapes(models.build({"model_type": "bert"}))
    assert models.parameter_count(shapes) == 109_483_778  # transformers: BertForSequenceClassification(BertConfig())
    assert models.parameter_bytes(shapes) == 4 * 109_483_778
