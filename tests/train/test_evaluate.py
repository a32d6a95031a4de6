"""Metrics of a data set, and logits collected in its order."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from toy_encoder import ToyEncoder, make_batch

from jaxdistill.distill import compute_logits
from jaxdistill.parallel import make_mesh
from jaxdistill.train import evaluate_logits, make_eval_step

MODEL = ToyEncoder()


def logits_for(predictions, classes):
    return np.eye(classes, dtype=np.float32)[predictions] * 3


def test_binary_metrics_by_hand():
    """Predictions 1 1 0 0 1 against labels 1 0 0 1 -: 2 of 4 right; class 1 has precision 1/2 and recall 1/2."""
    results = evaluate_logits(logits_for([1, 1, 0, 0, 1], 2), None, np.array([1, 0, 0, 1, -100]))
    right, wrong = np.log1p(np.exp(-3.0)), np.log1p(np.exp(3.0))
    assert results == pytest.approx({"accuracy": 0.5, "f1": 0.5, "loss": (right + wrong) / 2}, rel=1e-6)


def test_several_classes_have_the_mean_of_their_f1():
    """Class 0: f1 1; class 1: precision 1, recall 1/2, f1 2/3; class 2: precision 1/2, recall 1, f1 2/3."""
    results = evaluate_logits(logits_for([0, 1, 2, 2], 3), None, np.array([0, 1, 1, 2]))
    assert results["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert results["accuracy"] == 0.75


def test_against_the_teacher_every_row_counts():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 1, (2, 50, 4)).astype(np.float32)
    results = evaluate_logits(student, teacher, np.full(50, -100))
    p, q = log_softmax(teacher.astype(np.float64), -1), log_softmax(student.astype(np.float64), -1)
    expected = {
        "kl": (softmax(teacher.astype(np.float64), -1) * (p - q)).sum(-1).mean(),
        "agreement": (student.argmax(-1) == teacher.argmax(-1)).mean(),
    }
    assert results == pytest.approx(expected, rel=3e-6)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"labels of shape \[3\] do not fit student logits of shape \[4, 2\]"):
        evaluate_logits(np.zeros((4, 2)), None, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"teacher logits of shape \[4, 3\]"):
        evaluate_logits(np.zeros((4, 2)), np.zeros((4, 3)), None)


def shuffled_batches():
    """40 examples, shuffled over three batches of two lengths, the last one with filler rows."""
    rows = [make_batch(rows=16, length=length, fillers=0, seed=seed) for seed, length in enumerate((8, 12, 8))]
    order = np.random.default_rng(3).permutation(40)
    for batch, ids in zip(rows, np.split(np.append(order, np.full(8, -1)), 3), strict=True):
        batch["example_id"] = ids.astype(np.int32)
    rows[-1]["attention_mask"][8:] = 0
    return rows


@pytest.mark.parametrize("devices", [None, 8])
def test_logits_come_in_the_order_of_the_examples(devices):
    params = MODEL.init(jax.random.key(0))
    batches = shuffled_batches()
    logits = compute_logits(MODEL, params, batches, 40, make_mesh() if devices else None)
    assert logits.shape == (40, 3)
    assert logits.dtype == np.float32
    for batch in batches:
        real = batch["example_id"] >= 0
        expected = np.asarray(MODEL.apply(params, batch)["logits"])[real]
        np.testing.assert_allclose(logits[batch["example_id"][real]], expected, rtol=1e-5, atol=1e-6)
    again = compute_logits(MODEL, params, batches, 40, make_mesh() if devices else None)
    np.testing.assert_array_equal(again, logits)


def test_missing_and_foreign_examples_are_errors():
    params = MODEL.init(jax.random.key(0))
    batches = shuffled_batches()
    with pytest.raises(ValueError, match=r"1 of 41 examples are in no batch, the first is 40"):
        compute_logits(MODEL, params, batches, 41)
    with pytest.raises(ValueError, match=r"example_id 39 in the batches, but the data set has 30"):
        compute_logits(MODEL, params, batches, 30)


def test_a_model_with_another_tokenizer_reads_its_own_tokens():
    params = MODEL.init(jax.random.key(0))
    ours, theirs = make_batch(fillers=0, seed=1), make_batch(fillers=0, seed=2)
    own = {name: theirs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    logits = compute_logits(MODEL, params, [ours | {"tokenizers": {"1": own}}], 64, tokenizer_index=1)
    expected = np.asarray(MODEL.apply(params, theirs)["logits"])
    np.testing.assert_allclose(logits[ours["example_id"]], expected, rtol=1e-5, atol=1e-6)


def test_the_evaluation_step_has_no_dropout():
    model = ToyEncoder(dropout=0.5)
    params = model.init(jax.random.key(0))
    batch = make_batch()
    logits = make_eval_step(student=model, mesh=make_mesh())(params, batch)["logits"]
    np.testing.assert_allclose(logits, model.apply(params, batch)["logits"], rtol=1e-5, atol=1e-6)
