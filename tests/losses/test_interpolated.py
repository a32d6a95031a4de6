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

B, V, T = 4, 11, 2.0


def run(loss, student, teacher, *numbers, where=None):
    """Values and gradients of loss(student, teacher, *numbers, where), in float64 for comparing."""
    where = np.ones(student.shape[:-1], bool) if where is None else where

    @jax.jit
    def both(student, teacher, where, *numbers):
        values, pull_back = jax.vjp(lambda s: loss(s, teacher, *numbers, where), student)
        return values, pull_back(jnp.ones_like(values))[0]

    return [np.asarray(x, np.float64) for x in both(student, teacher, where, *map(jnp.float32, numbers))]


def skewed(skew):
    return lambda s, t, temperature, where: losses.skewed_kl(s, t, skew=skew, temperature=temperature, where=where)


def taid(s, t, temperature, progress, where):
    return losses.taid(s, t, progress=progress, temperature=temperature, where=where)


def logits(noise=None, seed=0):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, B, V)) * 2
    student = student if noise is None else teacher + rng.normal(size=(B, V)) * noise
    return student.astype(np.float32), teacher.astype(np.float32)


@pytest.mark.parametrize("skew", [0.1, 0.9])
def test_skewed_kl_matches_float64(skew):
    for noise in (None, 1e-2, 1e-3):
        student, teacher = logits(noise)
        values, gradient = run(skewed(skew), student, teacher, T)
        np.testing.assert_allclose(values, oracle.skewed_kl(student, teacher, T, skew), RTOL, ATOL)
        expected = numeric_gradient(lambda s, t=teacher: oracle.skewed_kl(s, t, T, skew).sum(), student, 1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_skewed_kl_at_its_ends_and_where_the_student_has_forgotten():
    student, teacher = logits()
    np.testing.assert_array_equal(losses.skewed_kl(student, teacher, skew=0.0), losses.forward_kl(student, teacher))
    np.testing.assert_array_equal(losses.skewed_kl(student, teacher, skew=1.0), 0)
    np.testing.assert_array_equal(losses.skewed_kl(student, student), 0)
    student[:, 3] = -np.inf
    teacher[:, 5] = student[:, 7] = teacher[:, 7] = -np.inf
    values, gradient = run(skewed(0.1), student, teacher, T)
    np.testing.assert_allclose(values, oracle.skewed_kl(student, teacher, T, 0.1), RTOL, ATOL)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, [3, 7]], 0)


def test_taid_matches_float64():
    for noise in (None, 1e-2):
        student, teacher = logits(noise)
        for progress in (0.0, 0.3, 1.0):
            values, gradient = run(taid, student, teacher, T, progress)
            moved = float(np.float32(progress))
            np.testing.assert_allclose(values, oracle.taid(student, teacher, T, moved), RTOL, ATOL)
            # The target's share of the student does not follow it.
            expected = numeric_gradient(
                lambda s, t=teacher, m=moved, f=student: oracle.taid(s, t, T, m, frozen=f).sum(), student, 1e-5
            )
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=3e-7)


def test_taid_goes_from_nothing_to_forward_kl():
    student, teacher = logits()
    np.testing.assert_array_equal(losses.taid(student, teacher, progress=0), 0)
    np.testing.assert_allclose(losses.taid(student, teacher, progress=1), losses.forward_kl(student, teacher), RTOL)
    student[:, 3] = teacher[:, 3] = teacher[:, 5] = -np.inf
    values, gradient = run(taid, student, teacher, 1.0, 0.5)
    kept = np.delete(np.arange(V), [3, 5])  # no share of what the teacher excludes is left in the target
    log_q = loss_oracle.log_softmax(np.delete(student, 3, axis=-1).astype(float), axis=-1)[:, np.arange(V - 1) != 4]
    target = loss_oracle.log_softmax((student[:, kept].astype(float) + teacher[:, kept]) / 2, axis=-1)
    np.testing.assert_allclose(values, (np.exp(target) * (target - log_q)).sum(-1), RTOL, ATOL)
    assert np.isfinite(gradient).all()
    student[:, 7] = -np.inf
    assert (run(taid, student, teacher, 1.0, 1.0)[0] == np.inf).all()


@pytest.mark.parametrize(("loss", "numbers"), [(skewed(0.1), (T,)), (taid, (T, 0.4))], ids=["skewed_kl", "taid"])
def test_masks_and_teachers(loss, numbers):
    student, teacher = logits()
    values, gradient = run(loss, student, teacher, *numbers)
    where = np.array([1, 0, 1, 0], bool)
    spoiled = [np.where(where[:, None], x, bad).astype(np.float32) for x, bad in ((student, np.nan), (teacher, np.inf))]
    masked, masked_gradient = run(loss, *spoiled, *numbers, where=where)
    np.testing.assert_allclose(masked, np.where(where, values, 0), rtol=1e-6)
    np.testing.assert_allclose(masked_gradient, np.where(where[:, None], gradient, 0), rtol=1e-6, atol=1e-9)
    everything = jnp.ones(B, bool)
    to_teacher = jax.grad(lambda t: loss(student, t, *numbers, everything).sum())(teacher)
    np.testing.assert_array_equal(to_teacher, 0)


def test_bad_arguments_are_named():
    student, teacher = logits()
    for skew in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"skew must lie in \[0, 1\], got {skew}"):
            losses.skewed_kl(student, teacher, skew=skew)
    with pytest.raises(ValueError, match="skew must be a plain number"):
        losses.skewed_kl(student, teacher, skew=jnp.float32(0.1))
    with pytest.raises(ValueError, match=r"progress must lie in \[0, 1\], got 2"):
        losses.taid(student, teacher, progress=2)
    with pytest.raises(ValueError, match=r"progress must be a scalar, got shape \(4,\)"):
        losses.taid(student, teacher, progress=jnp.ones(4))
    with pytest.raises(ValueError, match=r"same shape.*vocabulary"):
        losses.taid(student, teacher[:, 1:], progress=0.5)
