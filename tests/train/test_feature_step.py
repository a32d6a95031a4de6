"""Updates by terms on hidden states and attention, with schedules: any split is the same update of one program."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from one_step import assert_same_step
from toy_encoder import make_batch

from jaxdistill import models
from jaxdistill.config.loss_schema import (
    AttentionKLTerm,
    CorrelationTerm,
    CosineTerm,
    CrossEntropyTerm,
    DivergenceTerm,
    HiddenStateTerm,
    PatientTerm,
    RelationTerm,
    Schedule,
)
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step

pytestmark = pytest.mark.slow

SHAPE = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
STUDENT, TEACHER = (models.build(SHAPE | {"num_hidden_layers": depth}, num_labels=3) for depth in (2, 4))
TERMS = (
    DivergenceTerm("forward_kl", weight=Schedule("linear", start=1.0, end=0.0), temperature=2.0),
    CrossEntropyTerm("cross_entropy", weight=0.3),
    HiddenStateTerm("hidden_state_mse"),
    CosineTerm("cosine", weight=Schedule("steps", values=(0.0, 2.0), at=(1,))),
    PatientTerm("patient"),
    AttentionKLTerm("attention_kl"),
    RelationTerm("relation_kl", relations=("query", "value"), relation_heads=4),
)


def make_step(terms=TERMS, **keys):
    optimizer = optax.chain(optax.trace(0.0), optax.scale(-0.1))
    devices = keys.pop("devices", 1)
    objective = make_objective(terms, [1.0], depths=(2, 4), total_steps=4)
    step = make_train_step(
        student=STUDENT,
        teachers=[OnlineTeacher(TEACHER)],
        objective=objective,
        optimizer=optimizer,
        mesh=make_mesh(ParallelConfig(data=devices)),
        **keys,
    )
    state = step.put_state(init_state(STUDENT, optimizer, jax.random.key(0), step.mesh))
    return step, state, step.put_params([jax.jit(TEACHER.init)(jax.random.key(7))])


def run(**keys):
    """The second update: (gradients, parameters, metrics)."""
    step, state, taught = make_step(**keys)
    for _ in range(2):
        state, metrics = step(state, taught, make_batch(rows=16, fillers=2, unlabelled=3))
    assert step.trace_count == 1
    state = step.get_state(state)
    return jax.tree.map(np.asarray, (state.opt_state[0].trace, state.params, metrics))


@pytest.fixture(scope="module")
def whole():
    return run()


PMAP = pytest.param({"devices": 2, "strategy": "pmap"}, marks=pytest.mark.long)


@pytest.mark.parametrize("keys", [{"accumulate": 2}, {"devices": 2}, PMAP], ids=str)
def test_any_split_is_the_same_update(whole, keys):
    assert_same_step(run(**keys), whole)


def test_the_step_decides_the_weights(whole):
    """At the second step of four the linear weight is 3/4, and the stairs have been climbed."""
    metrics = {name: total / count for name, (total, count) in whole[2].items()}
    parts = 0.75 * metrics["forward_kl"] + 2.0 * metrics["cosine"]
    parts += sum(metrics[name] for name in ("hidden_state_mse", "patient", "attention_kl", "relation_kl"))
    np.testing.assert_allclose(metrics["kd"], parts, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], parts + 0.3 * metrics["cross_entropy"], rtol=1e-5)


@pytest.mark.parametrize("keys", [{"accumulate": 2}, {"devices": 2, "strategy": "pmap"}], ids=str)
def test_a_loss_between_the_examples_of_a_batch_may_not_be_split(keys):
    with pytest.raises(ConfigError, match="compares the examples of a batch with one another"):
        make_step([CorrelationTerm("dist")], **keys)
