"""Every loss on the least inputs there are: its gradient is the slope of its values, and nothing is not a number."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import losses

pytestmark = pytest.mark.slow

B, S, D, V, N = 3, 4, 6, 5, 2

OF_LOGITS = {
    "forward_kl": functools.partial(losses.forward_kl, temperature=2.0),
    "reverse_kl": functools.partial(losses.reverse_kl, temperature=2.0),
    "jensen_shannon": functools.partial(losses.jensen_shannon, beta=0.3),
    "soft_cross_entropy": losses.soft_cross_entropy,
    "total_variation": losses.total_variation,
    "logit_mse": losses.logit_mse,
    "skewed_kl": losses.skewed_kl,
    "taid": functools.partial(losses.taid, progress=0.4),
    "dist": losses.dist,
    "dkd": lambda s, t, *, where: losses.dkd(s, t, jnp.zeros(s.shape[:-1], jnp.int32), where=where),
    "ensemble": lambda s, t, *, where: losses.ensemble_forward_kl(s, [t, -t], where=where),
    "cross_entropy": lambda s, t, *, where: losses.cross_entropy(s, jnp.zeros(s.shape[:-1], jnp.int32), where=where),
    "smoothed": lambda s, t, *, where: losses.cross_entropy(
        s, jnp.zeros(s.shape[:-1], jnp.int32), label_smoothing=0.1, where=where
    ),
    "z_loss": lambda s, t, *, where: losses.z_loss(s, where=where),
}
OF_STATES = {
    "hidden_state_mse": losses.hidden_state_mse,
    "embedding_mse": losses.embedding_mse,
    "cosine_distance": losses.cosine_distance,
    "patient_loss": losses.patient_loss,
    "similarity_preserving": losses.similarity_preserving,
    "contrastive": lambda s, t, *, where: losses.contrastive(
        s[:, 0], t[:, 0], temperature=1.0, where=None if where is None else where[:, 0]
    ),
    "relation_kl": functools.partial(losses.relation_kl, num_relation_heads=3),
}
OF_SCORES = {"attention_mse": losses.attention_mse, "attention_kl": losses.attention_kl}
FAMILIES = {"logits": OF_LOGITS, "states": OF_STATES, "scores": OF_SCORES}
NOT_ZERO_WHEN_EQUAL = {"soft_cross_entropy", "ensemble", "cross_entropy", "smoothed", "z_loss", "contrastive"}
H = 0.005


def draw(family, *, batch=B, length=S, classes=V):
    rng = np.random.default_rng(0)
    shape = {"logits": (batch, length, classes), "states": (batch, length, D), "scores": (batch, N, length, length)}
    return [jnp.asarray(rng.normal(size=shape[family]), jnp.float32) for _ in range(2)]


@functools.cache
def compiled(family):
    """Of each loss: values, and the gradients of their sum with respect to student and teacher."""

    def of_each(student, teacher, where):
        def total(loss, student, teacher):
            values = loss(student, teacher, where=where)
            return values.sum(), values

        return {
            name: jax.value_and_grad(functools.partial(total, loss), argnums=(0, 1), has_aux=True)(student, teacher)
            for name, loss in FAMILIES[family].items()
        }

    return jax.jit(of_each)


@functools.cache
def compiled_slopes(family):
    """Of each loss along a direction: differences of the fourth order, in float32."""

    def of_each(student, teacher, where, direction):
        def total(loss, step):
            # TAID's target holds the student's own logits, which get no gradient: what moves is the student alone.
            if loss is OF_LOGITS["taid"]:
                target = 0.6 * student + 0.4 * teacher
                return losses.forward_kl(student + step * direction, target, where=where).sum()
            return loss(student + step * direction, teacher, where=where).sum()

        weights = jnp.array([1.0, -8.0, 8.0, -1.0]) / (12 * H)
        steps = jnp.array([-2.0, -1.0, 1.0, 2.0]) * H
        return {
            name: jnp.vdot(weights, jax.vmap(functools.partial(total, loss))(steps))
            for name, loss in FAMILIES[family].items()
        }

    return jax.jit(of_each)


SIZES = [("logits", {}), ("states", {}), ("scores", {})]
SIZES += [(family, {"batch": 1, "length": 1}) for family in FAMILIES]
SIZES += [("logits", {"batch": 1}), ("logits", {"classes": 1}), ("states", {"batch": 1}), ("states", {"length": 1})]


@pytest.mark.parametrize(("family", "size"), SIZES, ids=str)
def test_gradients_are_slopes_on_least_inputs(family, size):
    student, teacher = draw(family, **size)
    direction = jnp.asarray(np.random.default_rng(9).normal(size=student.shape), jnp.float32)
    batch, length = student.shape[0], student.shape[-2]
    for where in (np.ones((batch, length), bool), np.tile(np.arange(length) < 1, (batch, 1))):
        slopes = compiled_slopes(family)(student, teacher, where, direction)
        for name, ((_, values), (gradient, of_teacher)) in compiled(family)(student, teacher, where).items():
            assert np.isfinite(values).all(), name
            assert not np.asarray(of_teacher).any(), name
            expected = np.vdot(np.float64(gradient), np.float64(direction))
            np.testing.assert_allclose(slopes[name], expected, rtol=2e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_padding_is_nothing(family):
    student, teacher = draw(family)
    where = np.zeros((B, S), bool)
    for s, t in ((student, teacher), (student * jnp.nan, teacher), (student, teacher * jnp.inf)):
        for name, ((_, values), (gradient, _)) in compiled(family)(s, t, where).items():
            assert not np.asarray(values).any(), name
            assert not np.asarray(gradient).any(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_models_lose_nothing(family):
    student, _ = draw(family)
    for name, ((_, values), (gradient, _)) in compiled(family)(student, student, np.ones((B, S), bool)).items():
        if name not in NOT_ZERO_WHEN_EQUAL:
            np.testing.assert_allclose(values, 0, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(gradient, 0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_permuted_batch_is_the_same_batch(family):
    student, teacher = draw(family)
    order = np.array([2, 0, 1])
    where = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    again = compiled(family)(student[order], teacher[order], where[order])
    for name, ((total, _), (gradient, _)) in compiled(family)(student, teacher, where).items():
        (permuted_total, _), (permuted, _) = again[name]
        np.testing.assert_allclose(permuted_total, total, rtol=3e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(permuted, gradient[order], rtol=1e-4, atol=1e-6, err_msg=name)
