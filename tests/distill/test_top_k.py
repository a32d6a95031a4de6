"""What is kept of a language model's teacher, and the loss on it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from jaxdistill import models
from jaxdistill.config import CrossEntropyTerm, DivergenceTerm
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.distill.bit_packing import bits_of, pack_ids, packed_bytes, unpack_ids
from jaxdistill.distill.top_k import StoredTeacher, TopKForm, top_k_error, top_k_of

SHAPE = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "initializer_range": 0.6,
}
TEMPERATURES = (1.0, 2.0)


@settings(deadline=None, max_examples=8)
@given(classes=st.integers(2, 2**25), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_ids_come_back_from_their_bits(classes, count, seed):
    ids = np.random.default_rng(seed).integers(0, classes, (3, count)).astype(np.int32)
    with jax.disable_jit():  # nothing to compile for every size
        packed = pack_ids(jnp.asarray(ids), bits=bits_of(classes))
        again = unpack_ids(packed, bits=bits_of(classes), count=count)
    assert packed.shape == (3, packed_bytes(count, bits_of(classes)))
    np.testing.assert_array_equal(again, ids)


@pytest.mark.parametrize("classes", [49_152, 128_256, 151_936, 262_144])
def test_64_tokens_take_at_most_300_bytes(classes):
    text = 4 + 4 + 2 + 2  # token, label, segment, position
    assert TopKForm(64, classes, (2.0,)).token_bytes + text <= 300


@pytest.fixture(scope="module")
def example():
    model = models.build(SHAPE, task="causal_lm")
    params = model.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 90, (2, 7)).astype(np.int32)
    segments = np.ones_like(ids)
    labels = np.where(np.arange(7) < 5, np.roll(ids, -1, 1), -100).astype(np.int32)
    batch = {"input_ids": ids, "labels": labels, "segment_ids": segments, "example_id": np.arange(2, dtype=np.int32)}
    batch["positions"] = np.broadcast_to(np.arange(7, dtype=np.int32), ids.shape)
    logits = np.asarray(model.apply(params, batch, ("logits",))["logits"], np.float64)
    return model, params, batch, logits


def kept_of(example, count, classes=97):
    model, params, batch, _ = example
    form, teacher = TopKForm(count, classes, TEMPERATURES), OnlineTeacher(model)
    batch = {**batch, "top_k": top_k_of(params, batch, teacher=teacher, form=form)}
    return form, teacher, params, batch


def test_what_is_kept_is_the_teacher(example):
    form, _, _, batch = kept_of(example, 8, classes=90)
    logits = example[3][..., :90]
    found = StoredTeacher(form).signals({}, batch, ("top_k",))["top_k"]
    ids = np.asarray(found["ids"])
    np.testing.assert_array_equal(np.sort(ids), np.sort(np.argsort(-logits)[..., :8]))
    exact = np.take_along_axis(logits, ids, -1) - logits.max(-1, keepdims=True)
    np.testing.assert_allclose(found["logits"], exact, rtol=2**-8, atol=1e-6)
    for index, temperature in enumerate(TEMPERATURES):
        p = softmax(logits / temperature, axis=-1)
        shares = np.exp(np.asarray(found["logits"], np.float64) / temperature)
        shares /= np.exp(np.asarray(found["log_normalizer"], np.float64)[..., index])[..., None]
        # the rest's mass is the teacher's own, whatever rounding did to the kept logits
        np.testing.assert_allclose(1 - shares.sum(-1), 1 - np.take_along_axis(p, ids, -1).sum(-1), atol=1e-6)


def test_the_error_is_the_divergence_from_the_whole_teacher(example):
    form, teacher, params, batch = kept_of(example, 8)
    found = top_k_error(params, batch, teacher=teacher, form=form)
    stored = StoredTeacher(form).signals({}, batch, ("top_k",))["top_k"]
    logits, ids, where = example[3], np.asarray(stored["ids"]), batch["labels"] != -100
    for index, temperature in enumerate(TEMPERATURES):
        log_p = logits / temperature - logsumexp(logits / temperature, axis=-1, keepdims=True)
        kept = np.asarray(stored["logits"], np.float64) / temperature
        kept -= np.asarray(stored["log_normalizer"], np.float64)[..., index, None]
        rest = 1 - np.exp(kept).sum(-1, keepdims=True)
        log_q = np.broadcast_to(np.log(rest / 89), log_p.shape).copy()
        np.put_along_axis(log_q, ids, kept, -1)
        expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        np.testing.assert_allclose(found["kl"][..., index][where], expected[where], rtol=1e-3, atol=3e-6)
        np.testing.assert_allclose(found["tail"][..., index][where], rest[..., 0][where], atol=1e-6)
        assert (np.asarray(found["kl"])[~where] == 0).all()


@pytest.mark.parametrize("fused", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_all_classes_kept_teach_what_the_teacher_does(example, fused):
    params = example[1]
    student = models.build({**SHAPE, "hidden_size": 8}, task="causal_lm")
    own = student.init(jax.random.key(1))
    form, teacher, _, batch = kept_of(example, 97)
    terms = (
        DivergenceTerm(type="forward_kl", weight=0.7, temperature=2.0),
        CrossEntropyTerm(type="cross_entropy", weight=0.3),
    )

    def loss_of(objective, taught):
        def loss(student_params):
            outputs = objective.outputs_of(0)
            signals = taught.signals(params, batch, outputs)
            learned = student.apply(student_params, batch, objective.student_outputs)
            return objective(learned, [signals], batch, counts=objective.counts(batch))

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(own)

    online = make_objective(terms, (1.0,), fused=fused)
    stored = make_objective(terms, (1.0,), fused=fused, stored_temperatures=TEMPERATURES)
    (expected, metrics), gradients = loss_of(online, teacher)
    (value, ours), our_gradients = loss_of(stored, StoredTeacher(form))
    np.testing.assert_allclose(value, expected, rtol=1e-3)  # logits are bfloat16
    assert set(ours) == set(metrics)
    for a, b in zip(jax.tree.leaves(our_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2 * float(jnp.abs(b).max()) + 1e-6)


def test_what_is_not_stored_is_refused(example):
    with pytest.raises(ValueError, match="top 4 tokens only, but the loss reads logits"):
        StoredTeacher(TopKForm(4, 97, (1.0,))).signals({}, example[2], ("logits",))
