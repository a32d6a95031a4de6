"""What the losses should be, in float64 NumPy and SciPy, written from the definitions and not from our formulas."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp

RTOL, ATOL = 3e-6, 1e-9  # the contract


def _log_two(student, teacher, temperature):
    """Log-probabilities (teacher, student)."""
    student, teacher = np.asarray(student, np.float64) / temperature, np.asarray(teacher, np.float64) / temperature
    return log_softmax(teacher, axis=-1), log_softmax(student, axis=-1)


def _kl(log_p, log_q):
    """Σ p (log p − log q) with 0 log 0 = 0, and +inf where only q is impossible."""
    ratio = _ratio(log_p, log_q)
    return np.where(np.isposinf(ratio), np.inf, np.exp(log_p) * ratio).sum(-1)


def _ratio(log_p, log_q):
    """log p − log q, and 0 where p is impossible."""
    possible = log_p > -np.inf
    return np.where(possible, log_p, 0) - np.where(possible, log_q, 0)


def _log_mixture(log_p, log_q, beta):
    return np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q)


def forward_kl(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    return temperature**2 * _kl(p, q)


def reverse_kl(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    return temperature**2 * _kl(q, p)


def jensen_shannon(student, teacher, temperature=1.0, beta=0.5):
    p, q = _log_two(student, teacher, temperature)
    m = _log_mixture(p, q, beta)
    return temperature**2 * (beta * _kl(p, m) + (1 - beta) * _kl(q, m))


def soft_cross_entropy(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    entropy = -np.where(p > -np.inf, np.exp(p) * np.where(p > -np.inf, p, 0), 0).sum(-1)
    return temperature**2 * (_kl(p, q) + entropy)


def total_variation(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    return 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(-1)


def logit_mse(student, teacher):
    return np.mean((np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) ** 2, axis=-1)


def ensemble_forward_kl(student, teachers, temperature=1.0, weights=None):
    weights = np.ones(len(teachers)) if weights is None else np.asarray(weights, np.float64)
    log_teachers = [_log_two(student, teacher, temperature)[0] for teacher in teachers]
    mean = logsumexp(log_teachers, axis=0, b=(weights / weights.sum()).reshape(-1, *[1] * np.ndim(student)))
    return temperature**2 * _kl(mean, _log_two(student, teachers[0], temperature)[1])


def cross_entropy(logits, labels, label_smoothing=0.0):
    logp = log_softmax(np.asarray(logits, np.float64), axis=-1)
    target = np.eye(logits.shape[-1])[labels] * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    return -np.where(target > 0, target * np.where(target > 0, logp, 0), 0).sum(-1)


GRADIENTS = {}


def gradient(name):
    """d loss / d student logits, from the definitions; checked against finite differences in the tests."""

    def register(function):
        GRADIENTS[name] = function
        return function

    return register


@gradient("soft_cross_entropy")
@gradient("forward_kl")
def _forward_gradient(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    return temperature * (np.exp(q) - np.exp(p))


@gradient("reverse_kl")
def _reverse_gradient(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    return temperature * _weighted(q, _ratio(q, p))


@gradient("jensen_shannon")
def _jensen_shannon_gradient(student, teacher, temperature=1.0, beta=0.5):
    p, q = _log_two(student, teacher, temperature)
    return temperature * (1 - beta) * _weighted(q, _ratio(q, _log_mixture(p, q, beta)))


@gradient("total_variation")
def _total_variation_gradient(student, teacher, temperature=1.0):
    p, q = _log_two(student, teacher, temperature)
    return 0.5 / temperature * _weighted(q, np.sign(np.exp(q) - np.exp(p)))


def _weighted(log_weights, values):
    """w·(values − Σ w·values), with 0 for impossible classes."""
    weights = np.exp(log_weights)
    values = np.where(weights > 0, values, 0)
    return weights * (values - (weights * values).sum(-1, keepdims=True))


@gradient("logit_mse")
def _logit_mse_gradient(student, teacher):
    return 2 * (np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) / student.shape[-1]


def close_kl(student, teacher, temperature=1.0):
    """Forward KL to about 1e-11 relative also for nearly equal distributions, where the textbook's terms cancel."""
    p, q = _log_two(student, teacher, temperature)
    return temperature**2 * (np.exp(p) * (np.expm1(q - p) - (q - p))).sum(-1)
