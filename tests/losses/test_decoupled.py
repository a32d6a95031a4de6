from __future__ import annotations

import feature_oracle as oracle
import jax
import jax.numpy as jnp
import loss_oracle
import numpy as np
import pytest
from feature_oracle import numeric_gradient
from loss_oracle import ATOL, RTOL

from jaxdistill import losses

B, V, T = 6, 9, 2.0


@jax.jit
def both(student, teacher, labels, weights, where):
    def loss(s):
        return losses.dkd(
            s, teacher, labels, target_weight=weights[0], other_weight=weights[1], temperature=T, where=where
        )

    values, pull_back = jax.vjp(loss, student)
    return values, pull_back(jnp.ones_like(values))[0]


def ours(student, teacher, labels, weights=(1.0, 8.0), where=None):
    where = np.ones(B, bool) if where is None else where
    return [np.asarray(x, np.float64) for x in both(student, teacher, labels, jnp.float32(weights), where)]


def example(noise=None):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, B, V)) * 2
    student = student if noise is None else teacher + rng.normal(size=(B, V)) * noise
    return student.astype(np.float32), teacher.astype(np.float32), rng.integers(0, V, B).astype(np.int32)


@pytest.mark.parametrize("weights", [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
def test_matches_float64(weights):
    for noise in (None, 1e-2):
        student, teacher, labels = example(noise)
        values, gradient = ours(student, teacher, labels, weights)
        np.testing.assert_allclose(values, oracle.dkd(student, teacher, labels, *weights, T), RTOL, ATOL)
        slope = numeric_gradient(lambda s, t=teacher, y=labels: oracle.dkd(s, t, y, *weights, T).sum(), student, 1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=2e-7)


def test_weighed_by_the_mass_of_the_others_the_parts_are_forward_kl():
    student, teacher, labels = example()
    target, others = (ours(student, teacher, labels, weights)[0] for weights in ((1, 0), (0, 1)))
    p = np.exp(loss_oracle.log_softmax(teacher.astype(float) / T, axis=-1))[np.arange(B), labels]
    np.testing.assert_allclose(target + (1 - p) * others, loss_oracle.forward_kl(student, teacher, T), rtol=1e-5)


def test_equal_logits_and_one_class_give_zero():
    student, _, labels = example()
    for array in ours(student, student, labels):
        np.testing.assert_allclose(array, 0, atol=1e-12)
    values, pull_back = jax.vjp(lambda s: losses.dkd(s, jnp.ones((2, 1)), jnp.zeros(2, jnp.int32)), jnp.zeros((2, 1)))
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull_back(jnp.ones(2))[0], 0)


def test_a_confident_teacher_still_says_how_the_others_are_spread():
    student, teacher, labels = example()
    teacher[np.arange(B), labels] = 60.0
    values, gradient = ours(student, teacher, labels, (0.0, 1.0))
    np.testing.assert_allclose(values, oracle.dkd(student, teacher, labels, 0.0, 1.0, T), RTOL, ATOL)
    assert (np.abs(gradient).max(-1) > 1e-2).all()


def test_absent_classes():
    student, teacher, labels = example()
    labels = labels % 6
    expected = oracle.dkd(student[:, :6], teacher[:, :6], labels, temperature=T)
    student[:, 6:] = teacher[:, 6:] = -np.inf
    values, gradient = ours(student, teacher, labels)
    np.testing.assert_allclose(values, expected, RTOL, ATOL)
    np.testing.assert_array_equal(gradient[:, 6:], 0)
    student[0, (labels[0] + 1) % 6] = student[1, labels[1]] = -np.inf
    np.testing.assert_array_equal(np.isinf(ours(student, teacher, labels)[0]), [True, True] + [False] * (B - 2))


def test_masks_ignored_labels_and_wrong_ones():
    student, teacher, labels = example()
    values, gradient = ours(student, teacher, labels)
    where = np.array([1, 0, 1, 1, 1, 1], bool)
    kept = np.array([1, 0, 1, 0, 1, 1], bool)
    spoiled_labels = labels.copy()
    student[1], teacher[3], spoiled_labels[3] = np.nan, np.inf, -100
    masked, masked_gradient = ours(student, teacher, spoiled_labels, where=where)
    np.testing.assert_allclose(masked, np.where(kept, values, 0), rtol=1e-6)
    np.testing.assert_allclose(masked_gradient, np.where(kept[:, None], gradient, 0), rtol=1e-6, atol=1e-8)
    spoiled_labels[4] = V
    np.testing.assert_array_equal(np.isnan(ours(student, teacher, spoiled_labels, where=where)[0]), np.arange(B) == 4)


def test_teacher_receives_exactly_zero_gradient():
    student, teacher, labels = example()
    np.testing.assert_array_equal(jax.grad(lambda t: losses.dkd(student, t, labels).sum())(teacher), 0)


def test_bad_arguments_are_named():
    student, teacher, labels = example()
    with pytest.raises(ValueError, match=r"labels must have.*\(6,\), got \(5,\)"):
        losses.dkd(student, teacher, labels[1:])
    with pytest.raises(ValueError, match=r"same shape"):
        losses.dkd(student, teacher[1:], labels)
    with pytest.raises(ValueError, match=r"temperature must be positive"):
        losses.dkd(student, teacher, labels, temperature=0)
