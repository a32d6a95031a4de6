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

B, N, S = 2, 3, 5
ON_SCORES = ["attention_mse", "attention_kl"]
CAUSAL = np.tril(np.ones((S, S), bool))


@functools.cache
def compiled(name, heads=None):
    options = {} if heads is None else {"num_relation_heads": heads}

    @jax.jit
    def value_and_gradient(student, teacher, where, attended):
        def total(student):
            masks = {"where": where} if heads is None else {"where": where, "attended": attended}
            values = getattr(losses, name)(student, teacher, **masks, **options)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(student)
        return values, gradient

    return value_and_gradient


def ours(name, student, teacher, where=None, *, heads=None, attended=None):
    """Values [B, S] and the gradient of their sum, in float64 for comparing."""
    where = np.ones((B, S), bool) if where is None else where
    attended = np.ones((B, S, S), bool) if attended is None else attended
    run = compiled(name, heads)
    values, gradient = run(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(where), jnp.asarray(attended))
    assert values.dtype == jnp.float32
    assert values.shape == (B, S)
    return np.asarray(values, np.float64), np.asarray(gradient, np.float64)


def scores(seed=0):
    return np.random.default_rng(seed).normal(size=(2, B, N, S, S)).astype(np.float32)


@pytest.mark.parametrize("name", ON_SCORES)
def test_values_and_gradients_match_float64(name):
    student, teacher = scores()
    function = getattr(oracle, name)
    values, gradient = ours(name, student, teacher)
    np.testing.assert_allclose(values, function(student, teacher), RTOL, ATOL)
    expected = numeric_gradient(lambda s: function(s, teacher).sum(), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ON_SCORES)
@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_causal_masks_leave_each_query_the_keys_it_has(name, hidden):
    student, teacher = scores()
    values, gradient = ours(name, *(np.where(CAUSAL, x, hidden).astype(np.float32) for x in (student, teacher)))
    for query in range(S):
        rows = [x[:, :, query : query + 1, : query + 1] for x in (student, teacher)]
        expected = getattr(oracle, name)(*rows)[:, 0]
        np.testing.assert_allclose(values[:, query], expected, RTOL, ATOL)
    np.testing.assert_array_equal(gradient[..., ~CAUSAL], 0)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ON_SCORES)
def test_padding_is_neither_query_nor_key(name):
    student, teacher = scores()
    kept = S - 2
    expected = getattr(oracle, name)(*(x[..., :kept, :kept] for x in (student, teacher)))
    where = np.broadcast_to(np.arange(S) < kept, (B, S))
    student[..., kept:], student[..., kept:, :] = np.nan, np.inf
    teacher[..., kept:], teacher[..., kept:, :] = np.inf, np.nan
    values, gradient = ours(name, student, teacher, where)
    np.testing.assert_allclose(values[:, :kept], expected, RTOL, ATOL)
    np.testing.assert_array_equal(values[:, kept:], 0)
    np.testing.assert_array_equal(gradient[..., kept:], 0)
    np.testing.assert_array_equal(gradient[..., kept:, :], 0)
    assert np.isfinite(gradient).all()
    for array in ours(name, student, teacher, np.zeros((B, S), bool)):
        np.testing.assert_array_equal(array, 0)


@pytest.mark.parametrize("name", ON_SCORES)
def test_equal_scores_give_exactly_zero(name):
    student, _ = scores()
    student[..., ~CAUSAL] = -np.inf
    values, gradient = ours(name, student, student)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", ON_SCORES)
def test_a_key_that_the_student_alone_cannot_see(name):
    student, teacher = scores()
    student[0, 1, 2, 3] = -np.inf
    values, _ = ours(name, student, teacher)
    assert values[0, 2] == np.inf
    assert np.isfinite(np.delete(values.ravel(), 2)).all()


def test_logarithms_of_probabilities_are_scores():
    student, teacher = scores()
    logs = [np.asarray(jax.nn.log_softmax(x, axis=-1)) for x in (student, teacher)]
    np.testing.assert_allclose(ours("attention_kl", *logs)[0], ours("attention_kl", student, teacher)[0], rtol=1e-5)


def vectors(student_width=6, teacher_width=12, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(B, S, width)).astype(np.float32) for width in (student_width, teacher_width))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_relations_match_float64_at_different_widths(heads, causal):
    student, teacher = vectors()
    attended = np.broadcast_to(CAUSAL, (B, S, S)) if causal else None
    values, gradient = ours("relation_kl", student, teacher, heads=heads, attended=attended)
    np.testing.assert_allclose(values, oracle.relation_kl(student, teacher, heads, attended), 2e-5, 1e-7)
    expected = numeric_gradient(lambda s: oracle.relation_kl(s, teacher, heads, attended).sum(), student)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-5)


def test_relations_leave_padding_out():
    student, teacher = vectors()
    expected = oracle.relation_kl(student[:, 1:4], teacher[:, 1:4], 3)
    where = np.broadcast_to((np.arange(S) > 0) & (np.arange(S) < 4), (B, S))
    student[~where], teacher[~where] = np.nan, np.inf
    values, gradient = ours("relation_kl", student, teacher, where, heads=3)
    np.testing.assert_allclose(values[:, 1:4], expected, 2e-5, 1e-7)
    np.testing.assert_array_equal(gradient[~where], 0)
    assert np.isfinite(gradient).all()
    for array in ours("relation_kl", student, teacher, np.zeros((B, S), bool), heads=3):
        np.testing.assert_array_equal(array, 0)


def test_relations_of_equal_vectors_one_token_or_turned_heads():
    student, teacher = vectors(6, 6)
    np.testing.assert_array_equal(losses.relation_kl(student, student, num_relation_heads=2), 0)
    np.testing.assert_array_equal(losses.relation_kl(student[:, :1], teacher[:, :1], num_relation_heads=2), 0)
    # Relations are inner products: a rotation inside a head changes none of them.
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turned = np.concatenate([student[..., :3] @ rotation, student[..., 3:]], axis=-1).astype(np.float32)
    np.testing.assert_allclose(losses.relation_kl(turned, student, num_relation_heads=2), 0, atol=1e-11)


@pytest.mark.parametrize("name", ON_SCORES)
def test_bad_scores_are_named(name):
    loss, (student, teacher) = getattr(losses, name), scores()
    with pytest.raises(ValueError, match=r"same shape.*\(2, 1, 5, 5\).*relation_kl"):
        loss(student[:, :1], teacher)
    with pytest.raises(ValueError, match=r"student_scores must have shape \[\.\.\., heads, tokens, tokens\]"):
        loss(student[..., :4], teacher[..., :4])
    with pytest.raises(ValueError, match=r"teacher_scores must be floating point, got bool"):
        loss(student, teacher > 0)
    with pytest.raises(ValueError, match=r"where must have the result's shape \(2, 5\), got \(2, 1, 5\)"):
        loss(student, teacher, where=jnp.ones((2, 1, 5), bool))


def test_bad_relations_are_named():
    student, teacher = vectors()
    for heads in (0, 4, 2.0):
        with pytest.raises(ValueError, match=rf"num_relation_heads must divide the width.*got {heads} for 6"):
            losses.relation_kl(student, teacher, num_relation_heads=heads)
    with pytest.raises(ValueError, match=r"alike in all but the width, got \(2, 4, 6\) and \(2, 5, 12\)"):
        losses.relation_kl(student[:, 1:], teacher, num_relation_heads=1)
    with pytest.raises(ValueError, match=r"attended must be bool of shape \(2, 5, 5\), got float32 of \(5, 5\)"):
        losses.relation_kl(student, teacher, num_relation_heads=1, attended=jnp.ones((5, 5)))
