"""Teachers: what they read, what they yield, and when they refuse."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import models
from jaxdistill.distill import CachedTeacher, OnlineTeacher


@dataclass(frozen=True)
class SumOfIds:
    """A model whose logits are the sum of the ids it was given; it fails if dropout is asked for."""

    def apply(self, params, batch, outputs=("logits",), key=None):
        assert key is None
        return {name: params * jnp.sum(batch["input_ids"], 1).astype(jnp.float32)[:, None] for name in outputs}


def test_a_teacher_reads_its_own_tokenizers_tokens():
    batch = {
        "input_ids": jnp.ones((2, 3), jnp.int32),
        "example_id": jnp.arange(2),
        "tokenizers": {"1": {"input_ids": jnp.full((2, 3), 5, jnp.int32)}},
    }
    for index, total in ((0, 3.0), (1, 15.0)):
        logits = OnlineTeacher(SumOfIds(), index).signals(jnp.float32(1), batch, ("logits",))["logits"]
        np.testing.assert_array_equal(logits, np.full((2, 1), total))


def test_a_prepared_teacher_gives_the_same_signals():
    shape = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    model = models.build({"model_type": "bert", **shape})
    params = jax.jit(model.init)(jax.random.key(0))
    ids = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    teacher = OnlineTeacher(model)
    prepared = teacher.prepare(params)
    logits = jax.jit(lambda params: teacher.signals(params, batch, ("logits",))["logits"])
    a, b = logits(params), logits(prepared)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert teacher.prepare(prepared) is prepared


def test_nothing_is_computed_that_no_term_reads():
    assert OnlineTeacher(SumOfIds()).signals(jnp.float32(1), {"input_ids": jnp.ones((2, 3), jnp.int32)}, ()) == {}
    assert CachedTeacher().signals({"logits": jnp.ones((4, 2))}, {"example_id": jnp.arange(2)}, ()) == {}


def test_a_cache_gives_the_examples_rows():
    cache = {"logits": jnp.arange(10, dtype=jnp.float32).reshape(5, 2)}
    logits = CachedTeacher().signals(cache, {"example_id": jnp.asarray([4, 0, -1, 2])}, ("logits",))["logits"]
    np.testing.assert_array_equal(logits[jnp.asarray([0, 1, 3])], [[8, 9], [0, 1], [4, 5]])
    assert np.isfinite(np.asarray(logits)).all()


def test_a_cache_of_other_data_is_noticed():
    logits = CachedTeacher().signals({"logits": jnp.ones((5, 2))}, {"example_id": jnp.asarray([5])}, ("logits",))
    assert np.isnan(np.asarray(logits["logits"])).all()


def test_a_cache_holds_logits_alone():
    with pytest.raises(ValueError, match="reads hidden_states; set teacher_cache: off"):
        CachedTeacher().signals({"logits": jnp.ones((5, 2))}, {}, ("logits", "hidden_states"))
