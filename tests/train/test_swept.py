"""Several students in one step: each as if alone, and the teacher only once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_encoder import ToyEncoder, make_batch

from jaxdistill.config.loss_schema import CorrelationTerm, CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import ParallelConfig, TrainConfig
from jaxdistill.data.stacking import stack
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step
from jaxdistill.train.flops import jaxpr_matmul_flops
from jaxdistill.train.optimizer import build_optimizer
from jaxdistill.train.step import TrainStep
from jaxdistill.train.swept import CommonObjective, SweptProgram, SweptState, student_of

STUDENT = ToyEncoder(hidden_size=16, dropout=0.1)
TEACHER = ToyEncoder(hidden_size=24)
SETTINGS = TrainConfig(steps=4, learning_rate=1e-2, weight_decay=0.1)
BATCHES = [make_batch(rows=16, fillers=3, unlabelled=2, seed=seed) for seed in range(4)]
VARIANTS = [(1.0, 0.9, 1e-2, 0), (4.0, 0.5, 3e-2, 0), (2.0, 1.0, 1e-3, 5)]
"""Temperature, weight of the divergence, learning rate, seed."""


def objective(temperature, weight):
    terms = (
        DivergenceTerm("forward_kl", weight=weight, temperature=temperature),
        CrossEntropyTerm("cross_entropy", weight=1 - weight),
    )
    return make_objective(terms, [1.0])


def optimizer(rate):
    return build_optimizer(dataclasses.replace(SETTINGS, learning_rate=rate), 4)[0]


def state_of(seed, rate, mesh):
    return init_state(STUDENT, optimizer(rate), jax.random.key(seed), mesh)


def swept(variants, mesh, accumulate=1):
    objectives = [objective(temperature, weight) for temperature, weight, _, _ in variants]
    common = CommonObjective.of(objectives)
    first = variants[0][2]
    program = SweptProgram(STUDENT, (OnlineTeacher(TEACHER),), common.objective, optimizer(first), accumulate)
    states = [state_of(seed, rate, mesh) for _, _, rate, seed in variants]
    rates = [rate / first for _, _, rate, _ in variants]
    return TrainStep(program, mesh, strategy="jit", donate=True), SweptState.stacked(
        states, common.numbers(objectives), rates
    )


def teacher_params(step):
    return step.put_params([jax.jit(TEACHER.init)(jax.random.key(7))])


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "accumulate"), [pytest.param(1, 1, marks=pytest.mark.long), (2, 2)])
def test_each_student_is_as_if_alone(devices, accumulate):
    mesh = make_mesh(ParallelConfig(data=devices))
    step, state = swept(VARIANTS, mesh, accumulate)
    state, metrics = step.many(step.put_state(state), teacher_params(step), stack(BATCHES, 4), 4)
    for index, (temperature, weight, rate, seed) in enumerate(VARIANTS):
        alone = make_train_step(
            student=STUDENT,
            teachers=[OnlineTeacher(TEACHER)],
            objective=objective(temperature, weight),
            optimizer=optimizer(rate),
            mesh=mesh,
            accumulate=accumulate,
        )
        own = alone.put_state(state_of(seed, rate, mesh))
        own, expected = alone.many(own, teacher_params(alone), stack(BATCHES, 4), 4)
        for got, wanted in zip(
            jax.tree.leaves(student_of(state.params, index)), jax.tree.leaves(own.params), strict=True
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        for name in ("loss", "forward_kl", "grad_norm", "accuracy"):
            np.testing.assert_allclose(metrics[f"{index}/{name}"], expected[name], rtol=1e-5, err_msg=name)


def test_the_teacher_is_computed_once():
    mesh = make_mesh(ParallelConfig(data=1))

    def flops(variants):
        step, state = swept(variants, mesh)
        return jaxpr_matmul_flops(step.jaxpr(state, teacher_params(step), BATCHES[0]))

    one, two, four = (flops(VARIANTS[:1] * count) for count in (1, 2, 4))
    student = two - one
    assert four == one + 3 * student
    rows, width = 16, TEACHER.hidden_size
    assert one - student == 2 * rows * width * (width + TEACHER.num_labels)  # the teacher's two products, once


def test_a_student_that_diverges_stops_alone():
    mesh = make_mesh(ParallelConfig(data=1))
    step, state = swept(VARIANTS[:2], mesh)
    table = state.params["embeddings"]["word"].at[1].set(jnp.nan)
    state = dataclasses.replace(state, params={**state.params, "embeddings": {"word": table}})
    state, metrics = step(step.put_state(state), teacher_params(step), BATCHES[0])
    assert [float(metrics[f"{index}/skipped"][0]) for index in range(2)] == [0.0, 1.0]
    assert float(metrics["skipped"][0]) == 0.0
    assert np.isfinite(student_of(state.params, 0)["embeddings"]["word"]).all()


def test_terms_that_no_student_has_together():
    with pytest.raises(ConfigError, match="no combination has every term"):
        CommonObjective.of([objective(1.0, 1.0), objective(1.0, 0.0)])


def test_micro_batches_of_a_loss_that_compares_examples_are_refused():
    compares = make_objective([CorrelationTerm("dist")], [1.0])
    program = SweptProgram(STUDENT, (OnlineTeacher(TEACHER),), compares, optimizer(1e-2), 2)
    with pytest.raises(ConfigError, match="compares the examples of a batch"):
        TrainStep(program, make_mesh(ParallelConfig(data=1)), strategy="jit", donate=True)
