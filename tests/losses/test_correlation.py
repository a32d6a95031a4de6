from __future__ import annotations

import feature_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_oracle import numeric_gradient
from loss_oracle import RTOL
from scipy.special import softmax

from jaxdistill import losses

B, V = 6, 5


@jax.jit
def both(student, teacher, where, weights, temperature):
    def loss(student):
        options = {"inter_weight": weights[0], "intra_weight": weights[1], "temperature": temperature}
        return losses.dist(student, teacher, where=where, **options)

    return jax.value_and_grad(loss)(student)


def ours(student, teacher, where=None, weights=(1.0, 1.0), temperature=1.0):
    where = np.ones(student.shape[:-1], bool) if where is None else where
    arrays = both(student, teacher, where, jnp.float32(weights), jnp.float32(temperature))
    return [np.asarray(x, np.float64) for x in arrays]


def logits():
    return np.random.default_rng(0).normal(size=(2, B, V)).astype(np.float32)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_matches_float64(weights):
    student, teacher = logits()
    for temperature in (1.0, 4.0):
        value, gradient = ours(student, teacher, weights=weights, temperature=temperature)
        np.testing.assert_allclose(value, oracle.dist(student, teacher, *weights, temperature), RTOL)
        slope = numeric_gradient(lambda s, t=temperature: oracle.dist(s, teacher, *weights, t), student)
        np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=1e-6)


def test_equal_logits_give_zero():
    student, _ = logits()
    value, gradient = ours(student, student)
    np.testing.assert_allclose(value, 0, atol=1e-13)  # the rounding of two directions, compiled apart
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_excluded_examples_are_as_if_dropped():
    student, teacher = logits()
    kept = [0, 2, 3, 5]
    expected = oracle.dist(student[kept], teacher[kept])
    student[[1, 4]], teacher[[1, 4]] = np.nan, np.inf
    where = np.isin(np.arange(B), kept)
    value, gradient = ours(student, teacher, where)
    np.testing.assert_allclose(value, expected, RTOL)
    np.testing.assert_array_equal(gradient[~where], 0)
    assert np.isfinite(gradient).all()
    for array in ours(student, teacher, np.zeros(B, bool)):
        np.testing.assert_array_equal(array, 0)


def test_order_and_leading_axes_of_examples_do_not_matter():
    student, teacher = logits()
    value, gradient = ours(student, teacher)
    order = np.random.default_rng(1).permutation(B)
    permuted, permuted_gradient = ours(student[order], teacher[order])
    np.testing.assert_allclose(permuted, value, rtol=2e-6)
    np.testing.assert_allclose(permuted_gradient, gradient[order], rtol=1e-5, atol=1e-7)
    folded = losses.dist(student.reshape(2, 3, V), teacher.reshape(2, 3, V))
    np.testing.assert_allclose(folded, value, rtol=2e-6)


def test_what_does_not_vary_has_no_correlation():
    student, teacher = logits()
    assert losses.dist(student[:, :1], teacher[:, :1]) == 0  # one class
    one_example = 1 - np.corrcoef(softmax(student[0].astype(float)), softmax(teacher[0].astype(float)))[0, 1]
    np.testing.assert_allclose(losses.dist(student[:1], teacher[:1]), one_example, RTOL)
    repeated = np.repeat(student[:1], B, axis=0)  # its probabilities differ between rows by rounding at most
    value, gradient = ours(repeated, repeated * np.float32(1.5), weights=(0.0, 1.0))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(ours(repeated, teacher, weights=(0.0, 1.0))[0], 1, rtol=1e-6)


def test_absent_classes_are_as_if_not_there():
    student, teacher = logits()
    expected = oracle.dist(student[:, :3], teacher[:, :3])
    student[:, 3:] = teacher[:, 3:] = -np.inf
    value, gradient = ours(student, teacher)
    np.testing.assert_allclose(value, expected, RTOL)
    np.testing.assert_array_equal(gradient[:, 3:], 0)
    assert np.isfinite(gradient).all()


def test_teacher_receives_exactly_zero_gradient():
    student, teacher = logits()
    np.testing.assert_array_equal(jax.grad(lambda t: losses.dist(student, t))(teacher), 0)


def test_bad_arguments_are_named():
    student, teacher = logits()
    with pytest.raises(ValueError, match=r"same shape"):
        losses.dist(student, teacher[1:])
    with pytest.raises(ValueError, match=r"where must have the result's shape \(6,\), got \(6, 5\)"):
        losses.dist(student, teacher, where=jnp.ones((B, V), bool))
    with pytest.raises(ValueError, match=r"temperature must be positive"):
        losses.dist(student, teacher, temperature=-1)
