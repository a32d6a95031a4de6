"""Decoders give what is asked for and compute no more; rematerialisation changes no gradient; dtypes stay where set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_reading import equations, shapes
from tiny_decoders import SHAPE, VARIANTS, VOCAB, batch, pack
from tiny_encoders import jit

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models import stack

B, S, D, N, K, H, L = 3, 12, 16, 4, 2, 4, 3


def make(variant="llama", **how):
    model = models.build(SHAPE | {"num_hidden_layers": L} | VARIANTS[variant], task="causal_lm", **how)
    return model, jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def llama():
    return make()


@pytest.fixture(scope="module")
def whole(llama):
    """Every output of every layer."""
    model, params = llama
    return jit(lambda p, b: model.apply(p, b, models.OUTPUTS))(params, batch())


def test_shapes_of_every_output(llama):
    model, params = llama
    out = jax.eval_shape(lambda p, b: model.apply(p, b, models.OUTPUTS), params, batch())
    assert jax.tree.map(lambda value: value.shape, out) == {
        "logits": (B, S, VOCAB),
        "last_hidden": (B, S, D),
        "head": {"input": (B, S, D), "kernel": (D, VOCAB)},
        "hidden_states": (L + 1, B, S, D),
        "attentions": (L, B, N, S, S),
        "attention_scores": (L, B, N, S, S),
        "qkv": (L, 3, B, S, N, H),
    }


def test_signals_agree_with_one_another(whole):
    """Scores are the scaled product of queries and keys, attentions their masked softmax, logits the head's product."""
    mask = batch()["attention_mask"]
    query, key = whole["qkv"][:, 0], whole["qkv"][:, 1]
    expected = np.einsum("lbqnh,lbknh->lbnqk", query, key) / np.sqrt(H)
    np.testing.assert_allclose(whole["attention_scores"], expected, atol=1e-5)
    seen = np.tril(np.ones((S, S), bool)) & (mask[:, None, :, None] == mask[:, None, None, :])
    masked = np.where(seen[None], whole["attention_scores"], -1e30)
    np.testing.assert_allclose(whole["attentions"], jax.nn.softmax(masked, axis=-1), atol=1e-6)
    np.testing.assert_array_equal(whole["hidden_states"][-1], whole["last_hidden"])
    head = whole["head"]
    np.testing.assert_allclose(head["input"] @ head["kernel"], whole["logits"], atol=1e-6)


@pytest.mark.parametrize("how", ["scan", "unstacked"])
def test_chosen_layers_are_those_of_all(llama, whole, how, monkeypatch):
    model, params = llama
    chosen = {"logits": None, "hidden_states": [-1, 0, 2], "attentions": [2, 0], "qkv": [1]}
    if how == "scan":
        monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    given = models.unstack_layers(params) if how == "unstacked" else params
    out = jit(lambda p, b: model.apply(p, b, chosen))(given, batch())
    assert out.keys() == chosen.keys()
    for name, layers in chosen.items():
        expected = whole[name] if layers is None else whole[name][np.array(layers)]
        np.testing.assert_allclose(out[name], expected, atol=5e-6, err_msg=name)


def test_nothing_is_computed_that_was_not_asked_for(llama, monkeypatch):
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    model, params = llama
    of = batch()

    def found(outputs):
        return shapes(lambda p, b: model.apply(p, b, outputs), params, of)

    head = found(("last_hidden", "head"))
    assert not {shape for shape in head if shape[-1:] == (VOCAB,) and shape != (D, VOCAB)}
    logits = found(("logits",))
    assert (B, S, VOCAB) in logits
    assert not {shape for shape in logits if shape[1:] in ((B, S, D), (B, N, S, S), (3, B, S, N, H))}
    last = found({"attentions": [-1]})
    assert (1, B, N, S, S) in last
    assert not {shape for shape in last if shape[1:] == (B, N, S, S) and shape[0] > 1}
    assert (L, B, S, D) in found(("hidden_states",))


def test_unasked_logits_are_not_in_the_compiled_program(llama):
    model, params = llama
    text = jit(lambda p, b: model.apply(p, b, ("last_hidden",))).lower(params, batch()).compile().as_text()
    assert f"f32[{B},{S},{VOCAB}]" not in text
    assert f"f32[{B * S},{VOCAB}]" not in text


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(llama, monkeypatch):
    """And what it computes again shows, in products: layers that keep less are always a scan."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    plain, params = llama
    of = batch()
    results, products = {}, {}
    for remat in ("none", "full", "dots", "names"):
        model = models.build(plain.config, task="causal_lm", remat=remat)

        def loss(params, model=model):
            return jnp.sum(jnp.sin(model.apply(params, of)["logits"]))

        results[remat] = jit(jax.grad(loss))(params)
        found = [equation.primitive.name for equation in equations(jax.grad(loss), params)]
        products[remat] = found.count("dot_general")
    for remat in ("full", "dots", "names"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * jnp.max(jnp.abs(b)), rtol=1e-5),
            results[remat],
            results["none"],
        )
    assert products["none"] < products["dots"] < products["names"] <= products["full"]


def test_a_window_wider_than_the_sequence_is_none(monkeypatch):
    """Then all layers are one scan; a narrower one splits it where it begins."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    model = models.build(
        SHAPE | {"num_hidden_layers": 4} | VARIANTS["qwen2"] | {"max_window_layers": 2}, task="causal_lm"
    )
    params = jax.eval_shape(model.init, jax.random.key(0))

    def scans(length):
        of = {"input_ids": np.zeros((1, length), np.int32)}
        found = equations(lambda p, b: model.apply(p, b), params, of)
        return sum(equation.primitive.name == "scan" for equation in found)

    assert (scans(3), scans(4)) == (1, 2)


def test_bfloat16_keeps_float32_where_it_must():
    model, params = make("qwen3", dtype=jnp.bfloat16)
    of = pack([np.arange(4, 11), np.arange(20, 24)])
    out = jit(lambda p, b: model.apply(p, b, ("logits", "last_hidden")))(params, of)
    assert (out["logits"].dtype, out["last_hidden"].dtype) == (jnp.float32, jnp.bfloat16)
    exact = models.build(model.config, task="causal_lm")
    expected = jit(exact.apply)(params, of)["logits"]
    assert np.abs(out["logits"] - expected).max() < 0.05 * np.abs(expected).max()
    for equation in equations(lambda p, b: model.apply(p, b), params, of):
        if equation.primitive.name in {"exp", "rsqrt", "logistic", "cos", "sin", "reduce_max"}:
            assert equation.invars[0].aval.dtype == jnp.float32, equation
        if equation.primitive.name == "dot_general":
            assert equation.invars[0].aval.dtype == jnp.bfloat16, equation
    gradients = jax.eval_shape(jax.grad(lambda p: jnp.sum(model.apply(p, of)["logits"])), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, gradients))} == {"float32"}


def test_fresh_parameters_and_their_number():
    _, params = make("qwen3")
    layers = params["decoder"]["layers"]
    for kernel in (layers["gate"]["kernel"], layers["attention"]["query"]["kernel"], params["embeddings"]["word"]):
        assert abs(float(jnp.std(kernel)) - 0.2) < 0.02
    np.testing.assert_array_equal(layers["attention"]["key_norm"]["scale"], 1)
    assert not np.array_equal(layers["gate"]["kernel"][0], layers["gate"]["kernel"][1])
    config = models.config_from_hf({"model_type": "llama", "vocab_size": 32000, "intermediate_size": 11008})
    shapes_7b = models.parameter_shapes(models.build(config, task="causal_lm"))
    assert models.parameter_count(shapes_7b) == 6_738_415_616  # Llama-2-7B's


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"task": "classification"}, "task: 'classification'.*causal_lm"),
        ({"num_labels": 2}, "num_labels: 2.*no classes"),
        ({"remat": "some"}, "remat: 'some'.*none, full, dots, names"),
        ({"attention": "flash"}, "attention: 'flash'.*auto, xla"),
    ],
)
def test_refusals(how, message):
    with pytest.raises(ModelError, match=message):
        models.build(SHAPE | {"model_type": "llama"}, **({"task": "causal_lm"} | how))


def test_batches_that_do_not_fit(llama):
    model, params = llama
    with pytest.raises(ModelError, match="input_ids missing"):
        model.apply(params, {"attention_mask": np.ones((1, 3), np.int32)})
    with pytest.raises(ModelError, match=r"33 tokens.*32 positions"):
        model.apply(params, {"input_ids": np.zeros((1, 33), np.int32)})
