from __future__ import annotations

import feature_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_oracle import numeric_gradient
from scipy.special import logsumexp

from jaxdistill import losses

B, V, K = 4, 12, 5


def stored(teacher, count, temperature=1.0):
    """(ids, logits, log-normaliser): what a cache keeps of a teacher's logits."""
    ids = np.argsort(-teacher, axis=-1)[:, :count].astype(np.int32)
    normalizer = logsumexp(teacher.astype(np.float64) / temperature, axis=-1).astype(np.float32)
    return ids, np.take_along_axis(teacher, ids, axis=-1), normalizer


def logits(seed=0):
    return (np.random.default_rng(seed).normal(size=(2, B, V)) * 2).astype(np.float32)


def ours(student, kept, temperature=1.0, tail="bucket", where=None):
    @jax.jit
    def both(student, kept, where):
        def loss(s):
            return losses.top_k_forward_kl(s, *kept, temperature=temperature, tail=tail, where=where)

        values, pull_back = jax.vjp(loss, student)
        return values, pull_back(jnp.ones_like(values))[0]

    return [np.asarray(x, np.float64) for x in both(student, kept, np.ones(B, bool) if where is None else where)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_values_and_gradients_match_float64(tail, temperature):
    student, teacher = logits()
    kept = stored(teacher, K, temperature)
    values, gradient = ours(student, kept, temperature, tail)
    expected = oracle.top_k_forward_kl(student, *kept, temperature, tail)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    slope = numeric_gradient(lambda s: oracle.top_k_forward_kl(s, *kept, temperature, tail).sum(), student)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=5e-6)


def test_all_classes_kept_is_forward_kl():
    student, teacher = logits()
    values, gradient = ours(student, stored(teacher, V))
    expected, pull_back = jax.vjp(lambda s: losses.forward_kl(s, teacher), student)
    np.testing.assert_allclose(values, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, pull_back(jnp.ones(B))[0], rtol=1e-5, atol=1e-7)


def test_a_bucket_bounds_forward_kl_from_below_ever_more_tightly():
    student, teacher = logits()
    bounds = np.stack([losses.top_k_forward_kl(student, *stored(teacher, count)) for count in (1, 3, 8, V)])
    assert (np.diff(bounds, axis=0) > -1e-6).all()
    np.testing.assert_allclose(bounds[-1], losses.forward_kl(student, teacher), rtol=2e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_models_that_agree_give_zero_in_any_order(tail):
    _, teacher = logits()
    values, gradient = ours(teacher, stored(teacher, K, 2.0), 2.0, tail)
    np.testing.assert_allclose(values, 0, atol=1e-10)
    np.testing.assert_allclose(gradient, 0, atol=2e-6)
    student, _ = logits()
    ids, kept, normalizer = stored(teacher, K)
    turned = (ids[:, ::-1], kept[:, ::-1], normalizer)
    forwards, backwards = (ours(student, each, 1.0, tail)[0] for each in ((ids, kept, normalizer), turned))
    np.testing.assert_allclose(forwards, backwards, rtol=2e-6)


def test_a_tail_without_mass():
    student, teacher = logits()
    teacher[:, K:] = -100.0
    ids, kept, normalizer = stored(teacher, K)
    values, gradient = ours(student, (ids, kept, normalizer))
    np.testing.assert_allclose(values, losses.forward_kl(student, teacher), rtol=1e-5)
    values, gradient = ours(student, (ids, kept, normalizer - np.float32(1e-6)))  # rounded to less than is stored
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()


def test_rubbish_behind_the_mask_reaches_neither_value_nor_gradient():
    student, teacher = logits()
    kept = stored(teacher, K)
    values, gradient = ours(student, kept)
    where = np.array([1, 0, 1, 0], bool)
    student[~where] = np.nan
    for array, bad in zip(kept, (-7, np.inf, np.nan), strict=True):
        array[~where] = bad
    masked, masked_gradient = ours(student, kept, where=where)
    np.testing.assert_allclose(masked, np.where(where, values, 0), rtol=1e-6)
    np.testing.assert_allclose(masked_gradient, np.where(where[:, None], gradient, 0), rtol=1e-6, atol=1e-8)


def test_a_class_that_is_none_is_loud():
    student, teacher = logits()
    for wrong in (-1, V):
        ids, kept, normalizer = stored(teacher, K)
        ids[1, 2] = wrong
        values, _ = ours(student, (ids, kept, normalizer))
        np.testing.assert_array_equal(np.isnan(values), [False, True, False, False])


def test_bad_arguments_are_named():
    student, teacher = logits()
    ids, kept, normalizer = stored(teacher, K)
    with pytest.raises(ValueError, match=r"top_ids must be integer.*float32"):
        losses.top_k_forward_kl(student, kept, kept, normalizer)
    with pytest.raises(ValueError, match=r"K up to 12, got \(4, 5\) and \(4, 4\)"):
        losses.top_k_forward_kl(student, ids, kept[:, :-1], normalizer)
    with pytest.raises(ValueError, match=r"log_normalizer must be floating point of shape \(4,\), got.*\(4, 1\)"):
        losses.top_k_forward_kl(student, ids, kept, normalizer[:, None])
    with pytest.raises(ValueError, match=r'tail must be "bucket" or "renormalise", got \'drop\''):
        losses.top_k_forward_kl(student, ids, kept, normalizer, tail="drop")
