"""One update of a student against its teachers, and the comparison of two such updates."""

from __future__ import annotations

import jax
import numpy as np
import optax

from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm, LogitMSETerm
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step

TERMS = (
    DivergenceTerm("forward_kl", weight=0.5, temperature=2.0),
    CrossEntropyTerm("cross_entropy", weight=0.3),
    LogitMSETerm("logit_mse", weight=0.2),
)


def one_step(student, teachers, batch, *, devices=1, strategy="jit", accumulate=1, terms=TERMS, depths=()):
    """(gradients, parameters after one SGD step, metrics) as NumPy arrays."""
    optimizer = optax.chain(optax.trace(0.0), optax.scale(-0.1))  # the trace keeps the gradient as it came
    mesh = make_mesh(ParallelConfig(data=devices))
    step = make_train_step(
        student=student,
        teachers=[OnlineTeacher(teacher) for teacher in teachers],
        objective=make_objective(terms, [2.0, 1.0][: len(teachers)], depths=depths),
        optimizer=optimizer,
        mesh=mesh,
        strategy=strategy,
        accumulate=accumulate,
    )
    teacher_params = [jax.jit(teacher.init)(jax.random.key(7 + k)) for k, teacher in enumerate(teachers)]
    state = step.put_state(init_state(student, optimizer, jax.random.key(0), mesh))
    state, metrics = step(state, step.put_params(teacher_params), batch)
    state = step.get_state(state)
    gradients, params, metrics = jax.tree.map(np.asarray, (state.opt_state[0].trace, state.params, metrics))
    assert metrics["skipped"][0] == 0
    return gradients, params, metrics


def assert_same_step(got, expected):
    """Gradients and parameters to 1e-6 of each array's largest value, metrics to 1e-6, counts exactly."""

    def close(path, a, b):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))

    for a, b in zip(got[:2], expected[:2], strict=True):
        jax.tree.map_with_path(close, a, b)
    assert got[2].keys() == expected[2].keys()
    for name, (total, count) in expected[2].items():
        np.testing.assert_allclose(got[2][name][0], total, rtol=1e-6, err_msg=name)
        assert got[2][name][1] == count, name


def repadded(batch, extra):
    """The same rows padded by `extra` more positions, with noise wherever the mask is 0."""
    mask = np.pad(batch["attention_mask"], ((0, 0), (0, extra)))
    ids = np.pad(batch["input_ids"], ((0, 0), (0, extra)))
    noise = np.random.default_rng(2).integers(0, 50, ids.shape).astype(np.int32)
    types = np.pad(batch["token_type_ids"], ((0, 0), (0, extra)))
    return batch | {
        "attention_mask": mask,
        "input_ids": np.where(mask > 0, ids, noise),
        "token_type_ids": np.where(mask > 0, types, noise % 2),
    }
