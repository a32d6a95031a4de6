"""What is asked for comes out, what is not is not computed; a scan is a loop; position 0 alone is the whole layer's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_reading import equations, shapes
from tiny_encoders import BERT_SHAPE, batch, jit

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models import stack

B, S, D, N, L, V = 5, 12, 16, 4, 3, 60
KEY = jax.random.key(7)


def make(architecture="bert", task="classification", **changes):
    config = BERT_SHAPE | {"model_type": architecture, "num_hidden_layers": L, "hidden_dropout_prob": 0.2}
    config |= {"attention_probs_dropout_prob": 0.2, "classifier_dropout": 0.2, "max_position_embeddings": 26}
    model = models.build(config | changes, task=task)
    return model, jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def bert():
    return make()


@pytest.fixture(scope="module")
def whole(bert):
    """Every output of every layer."""
    model, params = bert
    return jit(lambda p, b: model.apply(p, b, models.OUTPUTS))(params, batch())


@pytest.fixture
def scanned(monkeypatch):
    """Stacked layers run as a scan, as they do off the CPU."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)


def test_shapes_of_every_output(bert):
    model, params = bert
    out = jax.eval_shape(lambda p, b: model.apply(p, b, models.OUTPUTS), params, batch())
    got = {name: value.shape for name, value in out.items() if name != "head"}
    assert got == {
        "logits": (B, 2),
        "last_hidden": (B, S, D),
        "hidden_states": (L + 1, B, S, D),
        "attentions": (L, B, N, S, S),
        "attention_scores": (L, B, N, S, S),
        "qkv": (L, 3, B, S, N, D // N),
    }
    head = {name: value.shape for name, value in out["head"].items()}
    assert head == {"input": (B, D), "kernel": (D, 2), "bias": (2,)}


def test_signals_agree_with_one_another(whole):
    """Attentions are the softmax of the masked scores, scores the scaled product of queries and keys."""
    of, out = batch(), whole
    masked = np.where(of["attention_mask"][None, :, None, None, :] > 0, out["attention_scores"], -1e30)
    np.testing.assert_allclose(out["attentions"], jax.nn.softmax(masked, axis=-1), atol=1e-6)
    query, key = out["qkv"][:, 0], out["qkv"][:, 1]
    expected = np.einsum("lbqnh,lbknh->lbnqk", query, key) / np.sqrt(D // N)
    np.testing.assert_allclose(out["attention_scores"], expected, atol=1e-5)
    np.testing.assert_array_equal(out["hidden_states"][-1], out["last_hidden"])
    head = out["head"]
    np.testing.assert_allclose(head["input"] @ head["kernel"] + head["bias"][None], out["logits"], atol=1e-6)


@pytest.mark.parametrize("how", ["loop", "scan", "unstacked"])
def test_chosen_layers_are_those_of_all(bert, whole, how, monkeypatch):
    """Loop, scan and unstacked parameters give the same, whichever layers are chosen, in the order asked."""
    model, params = bert
    chosen = {"logits": None, "hidden_states": [-1, 0, 2], "attentions": [2, 0], "attention_scores": [-1], "qkv": [1]}
    if how == "scan":
        monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    given = models.unstack_layers(params) if how == "unstacked" else params
    out = jit(lambda p, b: model.apply(p, b, chosen))(given, batch())
    assert out.keys() == chosen.keys()
    for name, layers in chosen.items():
        expected = whole[name] if layers is None else whole[name][np.array(layers)]
        np.testing.assert_allclose(out[name], expected, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_scan_equals_loop_in_values_and_gradients(bert, monkeypatch):
    """With dropout: a scan over layers draws each layer's own masks, the same as the loop's."""
    model, params = bert
    of = batch()

    def loss(params, of):
        return jnp.sum(jnp.sin(model.apply(params, of, ("hidden_states",), key=KEY)["hidden_states"]))

    loop = jit(jax.value_and_grad(loss))(params, of)
    apart = jit(jax.value_and_grad(loss))(models.unstack_layers(params), of)
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    scan = jit(jax.value_and_grad(lambda params, of: loss(params, of)))(params, of)
    for value, gradients in (scan, (apart[0], models.stack_layers(apart[1]))):
        np.testing.assert_allclose(value, loop[0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), gradients, loop[1])


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("bert", None),
        ("bert", KEY),
        *(pytest.param(name, KEY, marks=[pytest.mark.slow, pytest.mark.long]) for name in ("distilbert", "roberta")),
    ],
)
def test_last_layer_at_position_0_alone_equals_the_whole(architecture, key):
    """Logits and every gradient, with and without dropout: asking for last_hidden forbids the short cut."""
    model, params = make(architecture, num_hidden_layers=2)
    of = batch(architecture)

    def run(outputs):
        def loss(params):
            logits = model.apply(params, of, outputs, key=key)["logits"]
            return jnp.sum(jnp.sin(logits)), logits

        (_, logits), gradients = jit(jax.value_and_grad(loss, has_aux=True))(params)
        return logits, gradients

    short, whole = run(("logits",)), run(("logits", "last_hidden"))
    np.testing.assert_allclose(short[0], whole[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), short[1], whole[1])


def products(model, params, outputs, rows):
    """How many matrix products have `rows` rows."""
    found = equations(lambda p, b: model.apply(p, b, outputs), params, batch())
    return sum(e.primitive.name == "dot_general" and e.outvars[0].aval.shape[0] == rows for e in found)


def test_last_layer_is_computed_at_position_0_alone(bert):
    """Four products with B·S rows a layer (qkv, output, two of the feed-forward); of the last only keys and values."""
    model, params = bert
    assert products(model, params, ("logits",), B * S) == 4 * (L - 1) + 1
    assert products(model, params, ("logits", "last_hidden"), B * S) == 4 * L
    assert products(model, params, {"logits": None, "hidden_states": [0, L - 1]}, B * S) == 4 * (L - 1) + 1
    assert products(model, params, {"logits": None, "attentions": [-1]}, B * S) == 4 * L


def test_nothing_is_stacked_unless_asked_for(bert, scanned):
    model, params = bert
    of = batch()

    def found(outputs):
        return shapes(lambda p, b: model.apply(p, b, outputs), params, of)

    logits = found(("logits",))
    assert not {shape for shape in logits if shape[1:] in ((B, S, D), (B, N, S, S), (3, B, S, N, D // N))}
    last = found({"attentions": [-1]})
    assert (1, B, N, S, S) in last
    assert not {shape for shape in last if shape[1:] == (B, N, S, S) and shape[0] > 1}
    assert (L, B, N, S, S) in found(("attentions",))


def test_masked_lm_decodes_only_when_logits_are_asked_for():
    model, params = make(task="masked_lm")
    assert (B, S, V) in shapes(lambda p, b: model.apply(p, b), params, batch())
    assert (B, S, V) not in shapes(lambda p, b: model.apply(p, b, ("last_hidden", "head")), params, batch())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (("logit",), "unknown logit.*logits"),
        ({"hidden_states": [4]}, r"hidden_states of layers \[4\].*4 \(0 to 3\)"),
        ({"qkv": []}, "qkv of no layer"),
        ({"attentions": [3, -4]}, r"attentions of layers \[3, -4\].*3 \(0 to 2\)"),
    ],
)
def test_outputs_that_do_not_exist(bert, outputs, message):
    with pytest.raises(ModelError, match=message):
        bert[0].apply(bert[1], batch(), outputs)


def test_unstacking_is_undone_by_stacking(bert):
    jax.tree.map(np.testing.assert_array_equal, models.stack_layers(models.unstack_layers(bert[1])), bert[1])
