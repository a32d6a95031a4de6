from __future__ import annotations

import jax
import jax.numpy as jnp
import loss_oracle as oracle
import numpy as np
import pytest
from loss_oracle import ATOL, RTOL
from scipy.special import softmax

from jaxdistill import losses

B, V, T = 6, 50, 2.0


def logits(seed, count):
    return (np.random.default_rng(seed).normal(size=(count, B, V)) * 2).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("weights", [None, [1, 0, 3], [0.2, 0.5, 0.3]])
def test_mixture_is_the_averaged_probabilities(weights, temperature):
    teachers = list(logits(1, 3))
    mixture = losses.mixture_logits(teachers, weights=weights, temperature=temperature)
    shares = np.ones(3) if weights is None else np.asarray(weights, float)
    expected = sum(
        w * softmax(t.astype(float) / temperature, axis=-1)
        for w, t in zip(shares / shares.sum(), teachers, strict=True)
    )
    got = np.asarray(mixture, np.float64)
    np.testing.assert_allclose(np.exp(got / temperature), expected, rtol=1e-5, atol=ATOL)  # already normalised
    traced = jax.jit(losses.mixture_logits)(teachers, temperature=temperature, weights=jnp.asarray(shares))
    np.testing.assert_allclose(traced, mixture, rtol=1e-5, atol=1e-5)


def test_mixture_with_absent_and_improbable_classes():
    one, other = np.zeros((2, 1, 4), np.float32)
    one[0], other[0] = [0, -np.inf, -np.inf, -300], [0, 1, -np.inf, -400]
    mixture = losses.mixture_logits([one, other])
    np.testing.assert_array_equal(np.isneginf(mixture), [[False, False, True, False]])
    np.testing.assert_allclose(mixture[0, 3], -300 - np.log(2), rtol=1e-6)  # below any float32 probability
    alone = losses.mixture_logits([one, other], weights=[1, 0])
    np.testing.assert_array_equal(np.isneginf(alone), np.isneginf(one))


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_ensemble_matches_float64(weights):
    teachers, student = list(logits(1, 3)), logits(2, 1)[0]
    values, pull_back = jax.vjp(
        lambda s: losses.ensemble_forward_kl(s, teachers, weights=weights, temperature=T), student
    )
    np.testing.assert_allclose(values, oracle.ensemble_forward_kl(student, teachers, T, weights), RTOL, ATOL)
    shares = np.ones(3) / 3 if weights is None else np.asarray(weights)
    p = sum(w * softmax(t.astype(float) / T, axis=-1) for w, t in zip(shares, teachers, strict=True))
    q = softmax(student.astype(float) / T, axis=-1)
    np.testing.assert_allclose(pull_back(jnp.ones(B))[0], T * (q - p), rtol=1e-5, atol=1e-7)


def test_a_student_that_has_nearly_become_the_ensemble():
    teachers = list(logits(1, 2))
    student = np.asarray(losses.mixture_logits(teachers, weights=[0.5, 0.5], temperature=T))
    student = (student + np.random.default_rng(0).normal(size=student.shape) * 0.02).astype(np.float32)
    values = losses.ensemble_forward_kl(student, teachers, temperature=T)
    expected = oracle.ensemble_forward_kl(student, teachers, T)
    assert (expected < 1e-3).all()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-9)


def test_an_ensemble_of_one_is_forward_kl():
    teacher, student = logits(1, 2)
    where = jnp.asarray([1, 0, 1, 1, 1, 1], bool)
    np.testing.assert_array_equal(
        losses.ensemble_forward_kl(student, [teacher], temperature=T, where=where),
        losses.forward_kl(student, teacher, temperature=T, where=where),
    )
    twice = losses.ensemble_forward_kl(student, [teacher, teacher], temperature=T)
    np.testing.assert_allclose(twice, losses.forward_kl(student, teacher, temperature=T), rtol=1e-5)


def test_any_divergence_against_the_mixture():
    teachers, student = list(logits(1, 2)), logits(2, 1)[0]
    mixture = losses.mixture_logits(teachers, temperature=T)
    p = sum(softmax(t.astype(float) / T, axis=-1) for t in teachers) / 2
    expected = oracle.reverse_kl(student, T * np.log(p), T)
    np.testing.assert_allclose(losses.reverse_kl(student, mixture, temperature=T), expected, rtol=1e-5)


def test_ensemble_teachers_receive_exactly_zero_gradient_and_masks_hold():
    teachers, student = list(logits(1, 2)), logits(2, 1)[0]
    to_teachers = jax.grad(lambda ts: losses.ensemble_forward_kl(student, ts, temperature=T).sum())(teachers)
    to_mixture = jax.grad(lambda ts: losses.mixture_logits(ts, temperature=T).sum())(teachers)
    for gradient in [*to_teachers, *to_mixture]:
        np.testing.assert_array_equal(gradient, 0)
    where = np.array([1, 0, 1, 1, 1, 1], bool)
    expected = losses.ensemble_forward_kl(student, teachers)
    teachers[1][1] = np.nan
    values, pull_back = jax.vjp(lambda s: losses.ensemble_forward_kl(s, teachers, where=jnp.asarray(where)), student)
    np.testing.assert_allclose(values, np.where(where, expected, 0), rtol=1e-6)
    assert np.isfinite(pull_back(jnp.ones(B))[0]).all()


def test_the_most_confident_teacher_is_taken_position_by_position():
    """By its highest probability, whatever constant a teacher adds to its logits; of equals the first."""
    teachers = logits(5, 3)
    teachers[1] += 100
    teachers[2, :, 3] = -np.inf
    teachers[2, 1] = teachers[0, 1]
    confidence = softmax(teachers.astype(np.float64), axis=-1).max(-1)
    expected = np.take_along_axis(teachers, confidence.argmax(0)[None, :, None], axis=0)[0]
    chosen = jax.jit(losses.most_confident_logits)(list(teachers))
    np.testing.assert_array_equal(chosen, expected)
    assert len(set(confidence.argmax(0))) > 1
    np.testing.assert_array_equal(losses.most_confident_logits(teachers[:1]), teachers[0])
    for spoilt in (0, 2):  # which must show, not be passed over for another teacher
        broken = teachers.copy()
        broken[spoilt, 4, 0] = np.nan
        assert np.isnan(losses.most_confident_logits(list(broken))[4, 0])
    gradient = jax.grad(lambda teachers: losses.most_confident_logits(teachers)[0, 0])(list(teachers))
    assert all((np.asarray(each) == 0).all() for each in gradient)


def test_bad_ensembles_are_named():
    teachers, student = list(logits(1, 2)), logits(2, 1)[0]
    with pytest.raises(ValueError, match="at least one teacher"):
        losses.mixture_logits([])
    with pytest.raises(ValueError, match=r"teacher_logits\[1\] and teacher_logits\[0\].*vocabulary"):
        losses.mixture_logits([teachers[0], teachers[1][:, :-1]])
    with pytest.raises(ValueError, match=r"one number per teacher \(2\), got shape \(3,\)"):
        losses.ensemble_forward_kl(student, teachers, weights=[1, 1, 1])
    with pytest.raises(ValueError, match=r"one number per teacher \(2\), got shape \(3,\)"):
        losses.ensemble_forward_kl(student, teachers, weights=jnp.ones(3))
    for weights in ([1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(ValueError, match="non-negative with a positive sum"):
            losses.mixture_logits(teachers, weights=weights)
    with pytest.raises(ValueError, match="temperature must be positive"):
        losses.mixture_logits(teachers, temperature=0)


def batch():
    student, teacher = logits(3, 2)
    labels = np.array([3, -100, 7, 0, 49, 12], np.int32)
    where = np.array([1, 1, 1, 0, 1, 0], bool)
    return student, teacher, labels, where


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_textbook_loss_weighs_distillation_by_alpha(alpha):
    student, teacher, labels, where = batch()
    spoiled = student.copy()
    spoiled[3] = np.nan
    loss, metrics = losses.distillation_loss(spoiled, teacher, labels, temperature=T, alpha=alpha, where=where)
    kd = oracle.forward_kl(student, teacher, T)[where].mean()
    labelled = where & (labels != -100)
    ce = oracle.cross_entropy(student[labelled], labels[labelled]).mean()
    assert loss.shape == ()
    np.testing.assert_allclose(metrics["kd"], kd, RTOL)
    np.testing.assert_allclose(metrics["ce"], ce, RTOL)
    np.testing.assert_allclose(loss, alpha * kd + (1 - alpha) * ce, RTOL)


def test_textbook_loss_without_a_mask_or_labels():
    student, teacher, labels, _ = batch()
    _, metrics = losses.distillation_loss(student, teacher, labels, temperature=T, alpha=0.5)
    np.testing.assert_allclose(metrics["kd"], oracle.forward_kl(student, teacher, T).mean(), RTOL)
    unlabelled, metrics = losses.distillation_loss(student, teacher, np.full(B, -100), temperature=T, alpha=0.5)
    assert metrics["ce"] == 0
    np.testing.assert_allclose(unlabelled, 0.5 * metrics["kd"], rtol=1e-6)
    nothing = jnp.zeros(B, bool)
    assert losses.distillation_loss(student, teacher, labels, temperature=T, alpha=0.5, where=nothing)[0] == 0


def test_textbook_gradient():
    student, teacher, labels, where = batch()
    alpha = 0.7

    def loss(student, teacher):
        return losses.distillation_loss(student, teacher, labels, temperature=T, alpha=alpha, where=where)[0]

    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
    np.testing.assert_array_equal(to_teacher, 0)
    labelled = where & (labels != -100)
    kd = oracle.GRADIENTS["forward_kl"](student, teacher, T) * where[:, None] / where.sum()
    q = softmax(student.astype(float), axis=-1)
    ce = (q - np.eye(V)[labels.clip(0)]) * labelled[:, None] / labelled.sum()
    np.testing.assert_allclose(to_student, alpha * kd + (1 - alpha) * ce, rtol=1e-5, atol=1e-8)


def test_a_term_of_weight_zero_cannot_spoil_the_other():
    student, teacher, labels, where = batch()
    student[0, 3] = -np.inf  # the label of row 0: CE is infinite, and so is KL(teacher ‖ student)
    teacher[0, 3] = -np.inf
    pure, _ = losses.distillation_loss(student, teacher, labels, temperature=T, alpha=1.0, where=where)
    np.testing.assert_allclose(pure, oracle.forward_kl(student, teacher, T)[where].mean(), RTOL)


def test_alpha_may_be_traced_but_not_wrong():
    student, teacher, labels, _ = batch()
    loss = jax.jit(lambda a, t: losses.distillation_loss(student, teacher, labels, temperature=t, alpha=a)[0])
    plain, _ = losses.distillation_loss(student, teacher, labels, temperature=T, alpha=0.25)
    np.testing.assert_allclose(loss(0.25, T), plain, rtol=1e-6)
    for alpha in (-0.1, 1.1, None):
        with pytest.raises(ValueError, match=rf"alpha must .*\[0, 1\], got {alpha}"):
            losses.distillation_loss(student, teacher, labels, temperature=T, alpha=alpha)
    with pytest.raises(ValueError, match="temperature must be positive"):
        losses.distillation_loss(student, teacher, labels, temperature=0, alpha=0.5)
