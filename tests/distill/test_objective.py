"""The objective against sums worked out in float64, and what it declares."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxdistill.config.loss_schema import (
    CrossEntropyTerm,
    DivergenceTerm,
    JensenShannonTerm,
    LogitMSETerm,
    TotalVariationTerm,
)
from jaxdistill.distill import make_objective
from jaxdistill.errors import ConfigError

CE = CrossEntropyTerm("cross_entropy", weight=0.3)
KL = DivergenceTerm("forward_kl", weight=0.7, temperature=2.0)
REAL, CLASSES = 9, 4


@pytest.fixture
def data():
    """12 rows: 9 real (3 of them unlabelled), 3 filler rows whose logits are NaN for everybody."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 2, (12, CLASSES)).astype(np.float32) for _ in range(3)]
    for values in logits:
        values[REAL:] = np.nan
    labels = rng.integers(0, CLASSES, 12).astype(np.int32)
    labels[[1, 4, 5]], labels[REAL:] = -100, -100
    example_id = np.where(np.arange(12) < REAL, np.arange(12), -1).astype(np.int32)
    batch = {"labels": jnp.asarray(labels), "example_id": jnp.asarray(example_id)}
    return {"student": logits[0], "teachers": logits[1:], "batch": batch, "labels": labels}


def evaluate(objective, data, teachers):
    signals = [{"logits": jnp.asarray(data["teachers"][k])} for k in range(teachers)]
    batch = data["batch"]
    return objective({"logits": jnp.asarray(data["student"])}, signals, batch, counts=objective.counts(batch))


def cross_entropy(data):
    """(sum, count) over labelled rows."""
    known = data["labels"] != -100
    rows = log_softmax(data["student"][known].astype(np.float64), axis=-1)
    return -rows[np.arange(known.sum()), data["labels"][known]].sum(), known.sum()


def kl(student, probabilities, temperature):
    """T² Σ KL(p ‖ student) over real rows."""
    q = log_softmax(student[:REAL].astype(np.float64) / temperature, axis=-1)
    return temperature**2 * (probabilities * (np.log(probabilities) - q)).sum()


def mixture(data, weights, temperature):
    shares = np.asarray(weights) / np.sum(weights)
    parts = [softmax(t[:REAL].astype(np.float64) / temperature, axis=-1) for t in data["teachers"]]
    return sum(share * part for share, part in zip(shares, parts, strict=False))


def test_every_term_is_divided_by_its_own_count(data):
    loss, metrics = evaluate(make_objective([KL, CE], [1.0]), data, 1)
    ce_sum, ce_count = cross_entropy(data)
    kd_sum = kl(data["student"], softmax(data["teachers"][0][:REAL].astype(np.float64) / 2, axis=-1), 2.0)
    kd, ce = 0.7 * kd_sum / REAL, 0.3 * ce_sum / ce_count
    np.testing.assert_allclose(loss, kd + ce, rtol=3e-6)
    expected = {
        "loss": ((kd + ce) * REAL, REAL),
        "kd": (kd * REAL, REAL),
        "ce": (ce * REAL, REAL),
        "forward_kl": (kd_sum, REAL),
        "cross_entropy": (ce_sum, ce_count),
    }
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=3e-6, err_msg=name)
    known = data["labels"] != -100
    correct = (data["student"][known].argmax(-1) == data["labels"][known]).sum()
    assert tuple(map(float, metrics["accuracy"])) == (correct, ce_count)
    assert set(metrics) == {*expected, "accuracy"}


def test_several_teachers_are_averaged_as_probabilities_at_the_terms_temperature(data):
    objective = make_objective([DivergenceTerm("forward_kl", temperature=3.0)], [2.0, 1.0])
    expected = kl(data["student"], mixture(data, [2, 1], 3.0), 3.0) / REAL
    np.testing.assert_allclose(evaluate(objective, data, 2)[0], expected, rtol=3e-6)


@pytest.mark.parametrize("kind", ["forward_kl", "logit_mse"])
def test_each_row_may_learn_from_its_most_confident_teacher(data, kind):
    """All in one traced program; filler rows, whose logits are NaN, choose nobody."""
    both = np.stack(data["teachers"])[:, :REAL].astype(np.float64)
    chosen = softmax(both, axis=-1).max(-1).argmax(0)
    assert set(chosen) == {0, 1}
    target = both[chosen, np.arange(REAL)]
    expected = {
        "forward_kl": kl(data["student"], softmax(target / 2.0, axis=-1), 2.0) / REAL,
        "logit_mse": np.mean((data["student"][:REAL] - target) ** 2),
    }[kind]
    term = DivergenceTerm("forward_kl", temperature=2.0) if kind == "forward_kl" else LogitMSETerm("logit_mse")
    objective = make_objective([term], [1.0, 1.0], teacher_choice="confidence")
    np.testing.assert_allclose(jax.jit(lambda: evaluate(objective, data, 2)[0])(), expected, rtol=3e-6)


def test_logit_mse_takes_the_weighted_mean_of_the_logits(data):
    target = (2 * data["teachers"][0][:REAL].astype(np.float64) + data["teachers"][1][:REAL]) / 3
    expected = np.mean((data["student"][:REAL] - target) ** 2)
    objective = make_objective([LogitMSETerm("logit_mse")], [2.0, 1.0])
    np.testing.assert_allclose(evaluate(objective, data, 2)[0], expected, rtol=3e-6)


@pytest.mark.parametrize(
    ("term", "function"),
    [
        (DivergenceTerm("reverse_kl", temperature=2.0), lambda p, q: (q * (np.log(q) - np.log(p))).sum() * 4),
        (DivergenceTerm("soft_cross_entropy", temperature=2.0), lambda p, q: -(p * np.log(q)).sum() * 4),
        (TotalVariationTerm("total_variation", temperature=2.0), lambda p, q: 0.5 * np.abs(p - q).sum()),
        (
            JensenShannonTerm("jensen_shannon", temperature=2.0, beta=0.3),
            lambda p, q: (
                4 * sum(w * (a * (np.log(a) - np.log(0.3 * p + 0.7 * q))).sum() for w, a in ((0.3, p), (0.7, q)))
            ),
        ),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_each_divergence_reaches_its_loss_with_its_parameters(data, term, function):
    p = mixture(data, [1, 3], 2.0)
    q = softmax(data["student"][:REAL].astype(np.float64) / 2, axis=-1)
    objective = make_objective([term], [1.0, 3.0])
    np.testing.assert_allclose(evaluate(objective, data, 2)[0], function(p, q) / REAL, rtol=3e-6)


def test_filler_rows_reach_no_gradient(data):
    objective = make_objective([KL, CE, LogitMSETerm("logit_mse")], [1.0, 1.0])

    def loss(student):
        teachers = [{"logits": jnp.asarray(t)} for t in data["teachers"]]
        counts = objective.counts(data["batch"])
        return objective({"logits": student}, teachers, data["batch"], counts=counts)[0]

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(data["student"])))
    assert np.isfinite(gradient).all()
    assert (gradient[REAL:] == 0).all()
    assert (gradient[:REAL] != 0).any(axis=-1).all()


def test_shares_of_a_batch_add_up_to_its_loss_and_metrics(data):
    objective = make_objective([KL, CE], [1.0])
    counts = objective.counts(data["batch"])
    whole = evaluate(objective, data, 1)
    parts = []
    for rows in (slice(0, 2), slice(2, 9), slice(9, 12)):
        batch = jax.tree.map(lambda x, rows=rows: x[rows], data["batch"])
        teacher = {"logits": jnp.asarray(data["teachers"][0][rows])}
        parts.append(objective({"logits": jnp.asarray(data["student"][rows])}, [teacher], batch, counts=counts))
    total = jax.tree.map(lambda *values: sum(map(float, values)), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total, whole)


def test_a_term_of_weight_zero_is_gone_and_with_it_what_it_reads():
    objective = make_objective([DivergenceTerm("forward_kl", weight=0.0), CE])
    assert [term.name for term in objective.terms] == ["cross_entropy"]
    assert objective.teacher_outputs == {}
    assert objective.student_outputs == {"logits": None}


def test_terms_of_one_type_have_names_of_their_own(data):
    objective = make_objective([KL, DivergenceTerm("forward_kl", temperature=4.0, weight=0.1)], [1.0])
    assert {"forward_kl", "forward_kl_2"} <= set(evaluate(objective, data, 1)[1])


def test_labels_alone_have_no_kd_metric(data):
    _, metrics = evaluate(make_objective([CE]), data, 0)
    assert set(metrics) == {"loss", "ce", "cross_entropy", "accuracy"}


def test_a_distillation_term_without_a_teacher_is_refused():
    with pytest.raises(ConfigError, match="forward_kl compares with a teacher"):
        make_objective([KL, CE])


def test_an_objective_without_terms_is_refused():
    with pytest.raises(ConfigError, match="no term"):
        make_objective([CrossEntropyTerm("cross_entropy", weight=0.0)])


def test_counts_of_millions_are_exact():
    rows = 2**24 + 3  # float32 cannot count so far one by one
    batch = {"labels": jnp.zeros(rows, jnp.int8), "example_id": jnp.ones(rows, jnp.int8)}
    assert int(make_objective([CE]).counts(batch)["examples"]) == rows
