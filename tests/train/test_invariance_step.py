"""The same batch gives the same loss, gradients and parameters however it is split and padded."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from toy_encoder import ToyEncoder, make_batch

from jaxdistill.config.schema import CrossEntropyTerm, DivergenceTerm, LogitMSETerm, ParallelConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step

STUDENT = ToyEncoder(hidden_size=16, dropout=0.1)
TEACHERS = (ToyEncoder(hidden_size=24), ToyEncoder(hidden_size=8))
OBJECTIVE = make_objective(
    [
        DivergenceTerm("forward_kl", weight=0.5, temperature=2.0),
        CrossEntropyTerm("cross_entropy", weight=0.3),
        LogitMSETerm("logit_mse", weight=0.2),
    ],
    [2.0, 1.0],
)


def run(batch, *, devices=1, strategy="jit", accumulate=1):
    """Gradients, parameters after one SGD step, and metric means."""
    optimizer = optax.chain(optax.trace(0.0), optax.scale(-0.1))  # the trace keeps the gradient as it came
    mesh = make_mesh(ParallelConfig(data=devices))
    step = make_train_step(
        student=STUDENT,
        teachers=[OnlineTeacher(teacher) for teacher in TEACHERS],
        objective=OBJECTIVE,
        optimizer=optimizer,
        mesh=mesh,
        strategy=strategy,
        accumulate=accumulate,
    )
    teacher_params = [teacher.init(jax.random.key(7 + k)) for k, teacher in enumerate(TEACHERS)]
    state = step.put_state(init_state(STUDENT, optimizer, jax.random.key(0), mesh))
    state, metrics = step(state, step.put_params(teacher_params), batch)
    state = step.get_state(state)
    as_numpy = jax.tree.map(np.asarray, (state.opt_state[0].trace, state.params, metrics))
    assert as_numpy[2]["skipped"][0] == 0
    return as_numpy


def assert_same(got, expected):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())

    for a, b in zip(got[:2], expected[:2], strict=True):
        jax.tree.map(close, a, b)
    assert got[2].keys() == expected[2].keys()
    for name, (total, count) in expected[2].items():
        np.testing.assert_allclose(got[2][name][0], total, rtol=1e-6, err_msg=name)
        assert got[2][name][1] == count, name


@pytest.fixture(scope="module")
def whole():
    return run(make_batch())


@pytest.mark.parametrize(
    ("strategy", "devices", "accumulate"),
    [("jit", 1, 4), ("jit", 1, 64), ("jit", 8, 1), ("jit", 8, 2), ("pmap", 8, 1), ("pmap", 8, 4), ("pmap", 2, 1)],
)
def test_any_split_of_a_batch_is_the_same_update(whole, strategy, devices, accumulate):
    """The last device holds filler rows alone and the first almost no label: every share has other counts."""
    assert_same(run(make_batch(), devices=devices, strategy=strategy, accumulate=accumulate), whole)


def test_row_order_is_irrelevant(whole):
    order = np.random.default_rng(1).permutation(64)
    assert_same(run(jax.tree.map(lambda x: x[order], make_batch()), devices=8), whole)


def test_padding_content_and_length_are_irrelevant(whole):
    batch = make_batch()
    noise = np.random.default_rng(2).integers(0, 50, (64, 20)).astype(np.int32)
    mask = np.pad(batch["attention_mask"], ((0, 0), (0, 8)))
    padded = batch | {
        "attention_mask": mask,
        "input_ids": np.where(mask > 0, np.pad(batch["input_ids"], ((0, 0), (0, 8))), noise),
        "token_type_ids": np.pad(batch["token_type_ids"], ((0, 0), (0, 8)), constant_values=1),
    }
    assert_same(run(padded), whole)


def test_filler_rows_are_as_if_they_were_not_there(whole):
    rows = make_batch()
    real = rows["example_id"] >= 0
    assert_same(run(jax.tree.map(lambda x: x[real], rows)), whole)
