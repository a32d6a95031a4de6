"""Learned projections: terms between unequal widths against float64, and what happens without them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxdistill.config.loss_schema import (
    ContrastiveTerm,
    CosineTerm,
    CrossEntropyTerm,
    EmbeddingTerm,
    HiddenStateTerm,
    PatientTerm,
)
from jaxdistill.distill import make_objective
from jaxdistill.distill.projections import init_projections
from jaxdistill.errors import ConfigError

B, S, WIDTHS, DEPTHS = 3, 4, (3, 5), (2, 4)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], np.int32)
BATCH = {
    "attention_mask": jnp.asarray(MASK),
    "example_id": jnp.asarray([0, 1, -1], jnp.int32),
    "labels": jnp.full(B, -100, jnp.int32),
}
TOKENS = np.argwhere(MASK[:2])  # the last row fills up


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def over_tokens(distance):
    return lambda ours, theirs: np.mean([distance(ours[b, t], theirs[b, t]) for b, t in TOKENS])


def first_tokens(ours, theirs):
    return np.mean(np.sum((unit(ours[:2, 0]) - unit(theirs[:2, 0])) ** 2, axis=-1))


def find_own(ours, theirs):
    means = [unit(np.stack([states[b][MASK[b] > 0].mean(0) for b in range(2)])) for states in (ours, theirs)]
    return -np.diag(log_softmax(means[0] @ means[1].T / 0.1, axis=-1)).mean()


def mse(a, b):
    return np.mean((a - b) ** 2)


CASES = {
    "one each": (HiddenStateTerm("hidden_state_mse", projection="per_pair"), over_tokens(mse), (2, 3, 5), 0.5),
    "one for all, added up": (
        HiddenStateTerm("hidden_state_mse", projection="shared", reduce="sum"),
        over_tokens(mse),
        (1, 3, 5),
        1.0,
    ),
    "embeddings": (EmbeddingTerm("embedding_mse", projection="per_pair"), over_tokens(mse), (1, 3, 5), 1.0),
    "cosine": (
        CosineTerm("cosine", projection="shared"),
        over_tokens(lambda a, b: 1 - unit(a) @ unit(b)),
        (1, 3, 5),
        1.0,
    ),
    "patient": (
        PatientTerm("patient", layers="uniform", projection="per_pair"),
        first_tokens,
        (2, 3, 5),
        0.5,
    ),
    "contrastive": (ContrastiveTerm("contrastive", projection="per_pair"), find_own, (1, 3, 5), 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_students_states_are_projected(case):
    """Values against float64, gradients of the matrices by differences of it; padding holds NaN and reaches neither."""
    term, distance, shape, share = CASES[case]
    objective = make_objective([term], [1.0], depths=DEPTHS, widths=WIDTHS)
    name = term.type
    assert objective.projections[name]["teacher_1"].shape == shape
    rng = np.random.default_rng(1)
    arrays = []
    for width, request in zip(WIDTHS, (objective.student_outputs, objective.outputs_of(0)), strict=True):
        states = rng.normal(size=(len(request["hidden_states"] or ()), B, S, width)).astype(np.float32)
        states[:, MASK == 0] = states[:, 2] = np.nan
        arrays.append(states)
    kernels = rng.normal(size=shape).astype(np.float32)

    def loss(kernels):
        signals = [{"hidden_states": jnp.asarray(states)} for states in arrays]
        counts = objective.counts(BATCH)
        projections = {name: {"teacher_1": kernels}}
        return objective(signals[0], signals[1:], BATCH, counts=counts, projections=projections)[0]

    def expected(kernels):
        pairs = zip(*(states.astype(np.float64) for states in arrays), strict=True)
        each = [distance(ours @ kernels[min(at, len(kernels) - 1)], theirs) for at, (ours, theirs) in enumerate(pairs)]
        return share * sum(each)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(kernels))
    wide = kernels.astype(np.float64)
    np.testing.assert_allclose(value, expected(wide), rtol=1e-5)
    differences = np.zeros_like(wide)
    for index in np.ndindex(shape):
        moved = [wide.copy(), wide.copy()]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        differences[index] = (expected(moved[0]) - expected(moved[1])) / 2e-5
    np.testing.assert_allclose(gradient, differences, rtol=2e-4, atol=1e-5)


def test_each_teacher_has_its_own():
    term = HiddenStateTerm("hidden_state_mse", layers=((-1, -1), (0, 0)), projection="per_pair")
    objective = make_objective(
        [CrossEntropyTerm("cross_entropy"), term, term], [1.0, 3.0], depths=(2, 4, 3), widths=(4, 6, 4)
    )
    made = jax.jit(lambda key: init_projections(objective.projections, key))(jax.random.key(0))
    assert jax.tree.map(jnp.shape, made, is_leaf=lambda leaf: hasattr(leaf, "shape")) == {
        name: {"teacher_1": (2, 4, 6), "teacher_2": (2, 4, 4)} for name in ("hidden_state_mse", "hidden_state_mse_2")
    }
    np.testing.assert_array_equal(made["hidden_state_mse"]["teacher_2"], np.broadcast_to(np.eye(4), (2, 4, 4)))
    drawn = [made[name]["teacher_1"] for name in made]
    assert abs(np.asarray(drawn)).max() < 3  # of standard deviation 1/2
    assert not np.array_equal(*drawn)


def test_what_is_missing_is_said():
    term = CosineTerm("cosine", projection="shared")
    with pytest.raises(ConfigError, match="cosine has projections, for which the widths of the student and of 1"):
        make_objective([term], [1.0], depths=DEPTHS)
    objective = make_objective([term], [1.0], depths=DEPTHS, widths=WIDTHS)
    signals = [{"hidden_states": jnp.ones((1, B, S, width))} for width in WIDTHS]
    with pytest.raises(ValueError, match=r"init_state\(\.\.\., projections=objective.projections\)"):
        objective(signals[0], signals[1:], BATCH, counts=objective.counts(BATCH))
