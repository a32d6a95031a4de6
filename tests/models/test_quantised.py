"""Teachers in 8 bits: close to what they were, smaller, and refused when not close enough."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import models
from jaxdistill.models import quantised
from jaxdistill.models.axes import param_shardings
from jaxdistill.parallel import make_mesh, place

pytest.importorskip("qwix")

BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
}
LLAMA = {**BERT, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}


def batch():
    ids = np.random.default_rng(0).integers(0, 50, (4, 8)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.fixture(scope="module", params=[pytest.param("bert", marks=pytest.mark.slow), "llama"])
def model(request):
    built = models.build(BERT, num_labels=3) if request.param == "bert" else models.build(LLAMA, task="causal_lm")
    params = built.init(jax.random.key(0))
    return built, params, np.asarray(built.apply(params, batch(), ("logits",))["logits"])


def relative_error(logits, exact):
    return float(np.sqrt(np.mean((np.asarray(logits) - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.03), ("fp8", 0.1)])
def test_the_answers_hardly_change(model, kind, bound, monkeypatch):
    built, params, exact = model
    small = jax.jit(models.quantise, static_argnums=1)(params, kind)
    apply = jax.jit(lambda params: built.apply(params, batch(), ("logits",))["logits"])
    assert 0 < relative_error(apply(small), exact) < bound
    # apart, as a teacher on a CPU runs
    np.testing.assert_allclose(apply(models.unstack_layers(small)), apply(small), atol=1e-4)
    monkeypatch.setattr(quantised, "_activations_too", lambda: True)
    both = jax.jit(lambda params: built.apply(params, batch(), ("logits",))["logits"])
    assert 0 < relative_error(both(small), exact) < 2 * bound


def test_layers_take_a_quarter_and_everything_else_is_as_it_was(model):
    _, params, _ = model
    small = models.quantise(params, "int8")
    assert models.parameter_count(small) == models.parameter_count(params)
    assert models.parameter_bytes(small) < models.parameter_bytes(params)
    stack = "encoder" if "encoder" in params else "decoder"
    for path, leaf in jax.tree_util.tree_leaves_with_path(small, is_leaf=quantised.is_quantised):
        keys = [entry.key for entry in path]
        assert quantised.is_quantised(leaf) == (keys[0] == stack and keys[-1] == "kernel"), keys
        if quantised.is_quantised(leaf):
            assert leaf.qvalue.dtype == jnp.int8


def test_they_are_spread_over_a_mesh(model):
    built, params, _ = model
    small = models.quantise(params, "int8")
    mesh = make_mesh(devices=jax.devices()[:4]).__class__(
        np.asarray(jax.devices()[:4]).reshape(1, 2, 2), ("data", "fsdp", "tensor")
    )
    placed = place(small, param_shardings(built, mesh, like=small))
    whole = jax.jit(lambda params: built.apply(params, batch(), ("logits",))["logits"])
    np.testing.assert_allclose(whole(placed), whole(small), atol=2e-4)
    leaves = jax.tree.leaves(placed)
    assert any(not leaf.sharding.is_fully_replicated for leaf in leaves if leaf.dtype == jnp.int8)
