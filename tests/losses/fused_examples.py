"""Inputs for the fused loss, and what it should be: the dense losses in float32, and float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import loss_oracle as oracle
import numpy as np
from scipy.special import logsumexp, softmax

from jaxdistill import losses

DIVERGENCES = ["forward_kl", "reverse_kl", "jensen_shannon"]
WEIGHTS = {"kd_weight": 0.7, "ce_weight": 0.3, "z_weight": 0.01}
T = 2.0


class Example(NamedTuple):
    student_hidden: np.ndarray
    student_head: np.ndarray
    teacher_hidden: np.ndarray
    teacher_head: np.ndarray
    labels: np.ndarray

    def logits(self):
        """(student, teacher) in float64."""
        wide = [np.asarray(x, np.float64) for x in self[:4]]
        return wide[0] @ wide[1], wide[2] @ wide[3]


def random_example(tokens=13, classes=17, student_width=7, teacher_width=5, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(tokens, student_width), (student_width, classes), (tokens, teacher_width), (teacher_width, classes)]
    labels = rng.integers(0, classes, tokens).astype(np.int32)
    labels[1::5] = -100
    return Example(*(rng.normal(size=shape).astype(np.float32) for shape in shapes), labels)


def close_example(tokens=8, classes=40, shift=0.0, seed=0):
    """A student that is its teacher but for logits of the order of 1e-3, and a common shift.

    All numbers are short binary fractions: bfloat16 holds them, and their products are exact in float32.
    """
    rng = np.random.default_rng(seed)
    hidden, head = rng.integers(-2, 3, (tokens, 8)) / 2, rng.integers(-100, 101, (8, classes)) / 64
    noise_hidden, noise_head = np.full((tokens, 1), 2.0**-6), rng.integers(-8, 9, (1, classes)) / 64
    student_hidden = np.concatenate([hidden, noise_hidden, np.ones((tokens, 1))], axis=1)
    student_head = np.concatenate([head, noise_head, np.full((1, classes), shift)], axis=0)
    arrays = (x.astype(np.float32) for x in (student_hidden, student_head, hidden, head))
    return Example(*arrays, rng.integers(0, classes, tokens).astype(np.int32))


def fused(example, **options):
    options = {"temperature": T, **WEIGHTS, **options}
    return losses.fused_linear_distillation(*example, **options)


def value_and_gradients(function):
    """Of a function (example, *others) → (loss, metrics), with respect to the student's two arrays."""

    def split(student_hidden, student_head, rest, *others):
        return function(Example(student_hidden, student_head, *rest), *others)

    both = jax.value_and_grad(split, argnums=(0, 1), has_aux=True)
    return jax.jit(lambda example, *others: both(*example[:2], example[2:], *others))


def dense(example, *, divergence="forward_kl", temperature=T, where=None, **options):
    """The same loss from whole logits, in float32."""
    weights = {**WEIGHTS, **{name: options.pop(name) for name in WEIGHTS if name in options}}
    student, teacher = (
        jnp.where((example.labels != -100)[:, None], x @ y, 0.0)
        if where is None
        else jnp.where(where[:, None], x @ y, 0.0)
        for x, y in (example[:2], example[2:4])
    )
    counted = example.labels != -100 if where is None else where
    kd = getattr(losses, divergence)(student, teacher, temperature=temperature, where=counted, **options)
    ce = losses.cross_entropy(student, example.labels, where=counted)
    z = jnp.where(counted, jax.nn.logsumexp(student, axis=-1) ** 2, 0.0)
    sums = {"kd": kd.sum(), "ce": ce.sum(), "z": z.sum(), "count": counted.sum(dtype=jnp.int32).astype(jnp.float32)}
    return sum(weights[f"{name}_weight"] * sums[name] for name in ("kd", "ce", "z")), sums


def truth(example, *, divergence="forward_kl", temperature=T, close=False):
    """(loss, sums, gradient by the student's logits) in float64, with the weights of `WEIGHTS`."""
    student, teacher = example.logits()
    counted = example.labels != -100
    labels = np.where(counted, example.labels, 0)
    kd = getattr(oracle, divergence)(student, teacher, temperature)
    if close and divergence != "jensen_shannon":
        pair = (student, teacher) if divergence == "forward_kl" else (teacher, student)
        kd = oracle.close_kl(*pair, temperature)
    z = logsumexp(student, axis=-1)
    q = softmax(student, axis=-1)
    per_token = {"kd": kd, "ce": oracle.cross_entropy(student, labels), "z": z**2}
    sums = {name: values[counted].sum() for name, values in per_token.items()}
    gradient = (
        WEIGHTS["kd_weight"] * oracle.GRADIENTS[divergence](student, teacher, temperature)
        + WEIGHTS["ce_weight"] * (q - np.eye(q.shape[-1])[labels])
        + WEIGHTS["z_weight"] * 2 * z[:, None] * q
    )
    return sum(WEIGHTS[f"{name}_weight"] * sums[name] for name in sums), sums, gradient * counted[:, None]


def to_parameters(example, to_logits):
    """Gradients by hidden states and head, from that by the logits; float64."""
    hidden, head = (np.asarray(x, np.float64) for x in example[:2])
    return to_logits @ head.T, hidden.T @ to_logits


def assert_close(got, expected, rtol=1e-6, err_msg=""):
    """Against the largest entry: a single entry may pass through zero."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * np.abs(expected).max(), err_msg=err_msg)


def assert_same(got, expected, rtol=1e-6):
    """((loss, metrics), gradients) twice."""
    (loss, metrics), gradients = got
    (expected_loss, expected_metrics), expected_gradients = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=rtol)
    for name in ("kd", "ce", "z", "count"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=rtol, err_msg=name)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, rtol)
