"""The losses between hidden states, attention and classes in float64 NumPy, written from the papers' formulas."""

from __future__ import annotations

import numpy as np
from loss_oracle import _kl, forward_kl
from scipy.special import log_softmax, logsumexp, softmax


def numeric_gradient(function, x, step=1e-6):
    """Central differences of a float64 function that returns a number."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient


def _wide(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def hidden_state_mse(student, teacher):
    student, teacher = _wide(student, teacher)
    return np.mean((student - teacher) ** 2, axis=-1)


def cosine_distance(student, teacher):
    student, teacher = _wide(student, teacher)
    return 1 - (_unit(student) * _unit(teacher)).sum(-1)


def patient_loss(student, teacher):
    student, teacher = _wide(student, teacher)
    return (np.linalg.norm(_unit(student) - _unit(teacher), axis=-1)) ** 2


def similarity_preserving(student, teacher):
    grams = []
    for states in _wide(student, teacher):
        flat = states.reshape(len(states), -1)
        grams.append(_unit(flat @ flat.T))
    return ((grams[0] - grams[1]) ** 2).sum() / len(student) ** 2


def contrastive(student, teacher, temperature=0.1):
    student, teacher = _wide(student, teacher)
    similarities = _unit(student) @ _unit(teacher).T / temperature
    return -np.diag(log_softmax(similarities, axis=-1)).mean()


def attention_mse(student, teacher):
    """[..., N, S, S] of keys that all count."""
    student, teacher = _wide(student, teacher)
    return ((student - teacher) ** 2).mean(axis=(-3, -1))


def attention_kl(student, teacher):
    student, teacher = (log_softmax(scores, axis=-1) for scores in _wide(student, teacher))
    return _kl(teacher, student).mean(-2)


def relation_kl(student, teacher, heads, attended=None):
    """One head after the other, as the article writes it."""
    total = 0.0
    for head in range(heads):
        logs = []
        for vectors in _wide(student, teacher):
            width = vectors.shape[-1] // heads
            x = vectors[..., head * width : (head + 1) * width]
            scores = x @ np.swapaxes(x, -1, -2) / np.sqrt(width)
            logs.append(log_softmax(scores if attended is None else np.where(attended, scores, -np.inf), axis=-1))
        total = total + _kl(logs[1], logs[0])
    return total / heads


def skewed_kl(student, teacher, temperature=1.0, skew=0.1):
    student, teacher = (log_softmax(x / temperature, axis=-1) for x in _wide(student, teacher))
    mixture = np.logaddexp(np.log(skew) + teacher, np.log1p(-skew) + student)
    return temperature**2 * _kl(teacher, mixture)


def taid(student, teacher, temperature=1.0, progress=0.5, frozen=None):
    """`frozen`: the student that the target is made of, if it is not the one that is compared."""
    student, teacher = _wide(student, teacher)
    frozen = student if frozen is None else np.asarray(frozen, np.float64)
    return forward_kl(student, (1 - progress) * frozen + progress * teacher, temperature)


def dkd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=1.0):
    """One position after the other, from probabilities."""
    values = []
    for s, t, label in zip(*_wide(student, teacher), labels, strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        b = [np.array([x[label], np.delete(x, label).sum()]) for x in (p, q)]
        target = (b[0] * np.log(b[0] / b[1])).sum()
        rest = [np.delete(x, label) / np.delete(x, label).sum() for x in (p, q)]
        values.append(alpha * target + beta * (rest[0] * np.log(rest[0] / rest[1])).sum())
    return temperature**2 * np.array(values)


def dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0):
    q, p = (softmax(x / temperature, axis=-1) for x in _wide(student, teacher))

    def distance(x, y):
        return np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])

    return beta * distance(q, p) + gamma * distance(q.T, p.T)


def top_k_forward_kl(student, ids, stored, log_normalizer, temperature=1.0, tail="bucket"):
    student, stored, log_normalizer = _wide(student, stored, log_normalizer)
    values = []
    for s, row_ids, t, normalizer in zip(student, ids, stored, log_normalizer, strict=True):
        log_q, log_p = log_softmax(s / temperature)[row_ids], t / temperature - normalizer
        if tail == "bucket":
            others = np.delete(log_softmax(s / temperature), row_ids)
            log_q = np.append(log_q, logsumexp(others) if others.size else -np.inf)
            log_p = np.append(log_p, np.log(max(1 - np.exp(log_p).sum(), 1e-300)))
        else:
            log_q, log_p = log_q - logsumexp(log_q), log_p - logsumexp(log_p)
        values.append(_kl(log_p, log_q))
    return temperature**2 * np.array(values)
