from __future__ import annotations

import functools

import feature_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_oracle import numeric_gradient
from loss_oracle import ATOL, RTOL

from jaxdistill import losses

B, S, D = 4, 3, 5
PER_POSITION = ["hidden_state_mse", "embedding_mse", "cosine_distance", "patient_loss"]
OF_A_BATCH = ["similarity_preserving", "contrastive"]


@functools.cache
def compiled(name):
    @jax.jit
    def value_and_gradient(student, teacher, where):
        def total(student):
            values = getattr(losses, name)(student, teacher, where=where)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(student)
        return values, gradient

    return value_and_gradient


def ours(name, student, teacher, where=None):
    """Values and the gradient of their sum with respect to the student, in float64 for comparing."""
    where = np.ones(student.shape[:-1], bool) if where is None else where
    values, gradient = compiled(name)(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(where))
    assert values.dtype == jnp.float32
    assert gradient.dtype == student.dtype
    return np.asarray(values, np.float64), np.asarray(gradient, np.float64)


def truth(name, student, teacher):
    function = getattr(oracle, name.replace("embedding_mse", "hidden_state_mse"))
    return function(student, teacher), numeric_gradient(lambda s: np.sum(function(s, teacher)), student)


def states(name, seed=0):
    rng = np.random.default_rng(seed)
    shape = (B, D) if name == "contrastive" else (B, S, D)
    return rng.normal(size=(2, *shape)).astype(np.float32)


@pytest.mark.parametrize("name", PER_POSITION + OF_A_BATCH)
def test_values_and_gradients_match_float64(name):
    student, teacher = states(name)
    values, gradient = ours(name, student, teacher)
    expected, expected_gradient = truth(name, student, teacher)
    np.testing.assert_allclose(values, expected, RTOL, 3e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=2e-6 * np.abs(expected_gradient).max())
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
    held = [np.asarray(x.astype(jnp.float32)) for x in narrow]
    np.testing.assert_allclose(ours(name, *narrow)[0], ours(name, *held)[0], rtol=1e-6)


@pytest.mark.parametrize("name", PER_POSITION)
def test_nearly_equal_states(name):
    teacher = np.random.default_rng(1).normal(size=(B, S, D)).astype(np.float32)
    student = (teacher + np.random.default_rng(2).normal(size=teacher.shape) * 1e-3).astype(np.float32)
    values, _ = ours(name, student, teacher)
    expected = truth(name, student, teacher)[0]
    np.testing.assert_allclose(values, expected, RTOL, ATOL)
    assert (expected < 1e-4).all()


@pytest.mark.parametrize("name", [*PER_POSITION, "similarity_preserving"])
def test_equal_states_give_zero(name):
    student, _ = states(name)
    student[1, 0] = 0.0
    values, gradient = ours(name, student, student)
    rounding = 0.0 if name.endswith("mse") else 1e-7  # of two directions, compiled apart
    np.testing.assert_allclose(values, 0, atol=rounding**2)
    np.testing.assert_allclose(gradient, 0, atol=rounding)


@pytest.mark.parametrize("name", PER_POSITION)
def test_rubbish_behind_the_mask_reaches_neither_value_nor_gradient(name):
    student, teacher = states(name)
    values, gradient = ours(name, student, teacher)
    where = np.random.default_rng(3).random((B, S)) < 0.5
    student[~where], teacher[~where] = np.nan, np.inf
    masked, masked_gradient = ours(name, student, teacher, where)
    np.testing.assert_allclose(masked, np.where(where, values, 0), rtol=1e-6)
    np.testing.assert_allclose(masked_gradient, np.where(where[..., None], gradient, 0), rtol=1e-6, atol=1e-9)
    for array in ours(name, student, teacher, np.zeros((B, S), bool)):
        np.testing.assert_array_equal(array, 0)
    assert np.isnan(ours(name, student, teacher)[0][~where]).all()


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_excluded_examples_are_as_if_dropped(name):
    student, teacher = states(name)
    kept = [0, 1, 3]
    expected, expected_gradient = truth(name, student[kept], teacher[kept])
    student[2], teacher[2] = np.nan, np.inf
    where = np.ones(student.shape[:-1], bool)
    where[2] = False
    values, gradient = ours(name, student, teacher, where)
    np.testing.assert_allclose(values, expected, RTOL, 3e-7)
    np.testing.assert_allclose(gradient[kept], expected_gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[2], 0)
    for array in ours(name, student, teacher, np.zeros_like(where)):
        np.testing.assert_array_equal(array, 0)


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_order_of_examples_does_not_matter(name):
    student, teacher = states(name)
    order = np.random.default_rng(4).permutation(B)
    values, gradient = ours(name, student, teacher)
    permuted, permuted_gradient = ours(name, student[order], teacher[order])
    np.testing.assert_allclose(permuted, values, rtol=2e-6)
    np.testing.assert_allclose(permuted_gradient, gradient[order], rtol=1e-5, atol=1e-6)


def test_excluded_positions_of_an_example_do_not_count_in_its_similarities():
    student, teacher = states("similarity_preserving")
    where = np.ones((B, S), bool)
    where[1, 2:] = where[3, :1] = False
    spoiled = student.copy()
    spoiled[~where] = np.nan
    values, _ = ours("similarity_preserving", spoiled, teacher, where)
    dropped = [np.where(where[..., None], x, 0) for x in (student, teacher)]
    np.testing.assert_allclose(values, oracle.similarity_preserving(*dropped), RTOL)


def test_similarities_compare_models_of_different_widths():
    student, teacher = states("similarity_preserving")
    value = losses.similarity_preserving(student[..., :2], teacher)
    np.testing.assert_allclose(value, oracle.similarity_preserving(student[..., :2], teacher), RTOL, 1e-8)


def test_contrast_with_one_example_or_another_temperature():
    student, teacher = states("contrastive")
    assert losses.contrastive(student[:1], teacher[:1]) == 0
    value = losses.contrastive(student, teacher, temperature=jnp.float32(0.7))
    np.testing.assert_allclose(value, oracle.contrastive(student, teacher, 0.7), RTOL)


def test_zeros_have_no_direction():
    student, teacher = states("cosine_distance")
    student[0] = 0.0
    values, gradient = ours("cosine_distance", student, teacher)
    np.testing.assert_array_equal(values[0], 1)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_allclose(ours("patient_loss", student, teacher)[0][0], 1, rtol=1e-6)


def test_length_and_scale_do_not_matter_to_a_direction():
    student, teacher = states("cosine_distance")
    expected = oracle.cosine_distance(student, teacher)
    for scale in (1e-25, 1e25):
        np.testing.assert_allclose(ours("cosine_distance", student * np.float32(scale), teacher)[0], expected, 2e-6)


@pytest.mark.parametrize("name", PER_POSITION + OF_A_BATCH)
def test_teacher_receives_exactly_zero_gradient(name):
    student, teacher = states(name)
    gradient = jax.grad(lambda t: jnp.sum(getattr(losses, name)(student, t)))(teacher)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", PER_POSITION + OF_A_BATCH)
def test_bad_arguments_are_named(name):
    loss, (student, teacher) = getattr(losses, name), states(name)
    with pytest.raises(ValueError, match=r"floating point, got int32"):
        loss(student, np.ones(teacher.shape, np.int32))
    with pytest.raises(ValueError, match=r"where must be bool"):
        loss(student, teacher, where=jnp.ones(student.shape[:-1]))
    if name == "similarity_preserving":
        with pytest.raises(ValueError, match=r"alike in all but the width, got \(3, 3, 5\) and \(4, 3, 5\)"):
            loss(student[1:], teacher)
        return
    with pytest.raises(ValueError, match=r"same shape.*project the student's to the teacher's width"):
        loss(student[..., :3], teacher)
    if name == "contrastive":
        with pytest.raises(ValueError, match=r"\[examples, width\], got \(4, 3, 5\)"):
            loss(*states("patient_loss"))
