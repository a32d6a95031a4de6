"""What a CPU's programs are told for speed, and that it changes no value."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from tiny_encoders import BERT_SHAPE, batch

from jaxdistill import models
from jaxdistill.models import layers
from jaxdistill.models.layers import affine

IN, OUT, PLACES = 96, 32, 256


def written(text, operation):
    """The shapes that the operation writes in a compiled program."""
    return re.findall(rf"= f32\[([\d,]*)\]\S* {operation}\(", text)


def test_a_narrowing_products_gradient_is_computed_with_its_longer_side_last():
    draw = np.random.default_rng(0)
    x, g = (jnp.asarray(draw.normal(size=(PLACES, width)), jnp.float32) for width in (IN, OUT))
    kernel = jnp.asarray(draw.normal(size=(IN, OUT)), jnp.float32)

    @jax.jit
    def gradient(kernel, x, g):
        return jax.grad(lambda k: jnp.vdot(affine(x, k, None, dtype=jnp.dtype("float32")), g))(kernel)

    shapes = written(gradient.lower(kernel, x, g).compile().as_text(), "dot")
    assert f"{OUT},{IN}" in shapes
    assert f"{IN},{OUT}" not in shapes
    exact = np.asarray(x, np.float64).T @ np.asarray(g, np.float64)
    np.testing.assert_allclose(gradient(kernel, x, g), exact, rtol=1e-5, atol=1e-4)


def test_an_activation_of_no_number_is_none():
    np.testing.assert_array_equal(layers.activation("gelu")(jnp.array([np.nan, 0.0, np.inf])), [np.nan, 0.0, np.inf])


def test_every_layers_floor_is_the_most_negative_float():
    """Whatever the layer's parameters, also where a row has no key at all."""
    model = models.build({"model_type": "bert", **BERT_SHAPE})
    params, of = model.init(jax.random.key(0)), batch()
    of["attention_mask"] = np.zeros_like(of["attention_mask"])
    params["encoder"]["layers"]["attention"]["qkv"]["bias"] += 1e4
    found = jax.jit(lambda p, b: model.apply(p, b, ("attentions",))["attentions"])(params, of)
    np.testing.assert_allclose(found, 1 / found.shape[-1], rtol=1e-6)
