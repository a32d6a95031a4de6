"""An encoder whose layers are rematerialised draws the same dropout masks again: the same loss and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import BERT_SHAPE, batch, jit

from jaxdistill import models
from jaxdistill.models import stack


@pytest.mark.parametrize("remat", [pytest.param("full", marks=[pytest.mark.slow, pytest.mark.long]), "names"])
def test_encoder_with_dropout(remat, monkeypatch):
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    of, key = batch(), jax.random.key(5)
    config = BERT_SHAPE | {"model_type": "bert", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    plain = models.build(config)
    params = jit(plain.init)(jax.random.key(0))

    def run(model):
        def loss(params):
            out = model.apply(params, of, ("logits", "last_hidden"), key=key)
            return jnp.sum(jnp.sin(out["logits"])) + jnp.sum(jnp.sin(out["last_hidden"]))

        return jit(jax.value_and_grad(loss))(params)

    value, gradients = run(models.build(config, remat=remat))
    expected, expected_gradients = run(plain)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), gradients, expected_gradients)
