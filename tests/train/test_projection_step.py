"""Projections are trained beside the student: by any split of a batch the same, over any mesh, and apart from it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from one_step import assert_same_step
from toy_encoder import make_batch

from jaxdistill import models
from jaxdistill.config.loss_schema import EmbeddingTerm, HiddenStateTerm, Schedule
from jaxdistill.config.schema import ParallelConfig, TrainConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import build_optimizer, init_state, make_train_step

HALF = Schedule("steps", values=(0.25, 0.5), at=(1,))  # a switch within a stage is no other program
TERMS = (
    EmbeddingTerm("embedding_mse", projection="shared"),
    HiddenStateTerm("hidden_state_mse", layers=((0, 1), (1, 0)), projection="per_pair", weight=HALF),
)


@dataclass(frozen=True)
class ToyLayer:
    """Word embeddings and one hidden layer, with the protocol of `models.Model`."""

    hidden_size: int

    def init(self, key):
        return {
            "word": jax.random.normal(key, (50, self.hidden_size)),
            "kernel": jax.random.normal(jax.random.fold_in(key, 1), (self.hidden_size, self.hidden_size)),
        }

    def apply(self, params, batch, outputs, key=None):
        words = params["word"][batch["input_ids"]]
        layers = [words, jnp.tanh(words @ params["kernel"])]
        return {name: jnp.stack([layers[layer] for layer in wanted]) for name, wanted in outputs.items()}


STUDENT, TEACHER = ToyLayer(4), ToyLayer(6)


def run(*, devices=1, **keys):
    """The second update: (gradients, what is trained, metrics)."""
    optimizer = optax.chain(optax.trace(0.0), optax.scale(-0.1))
    objective = make_objective(TERMS, [1.0], depths=(1, 1), widths=(4, 6))
    step = make_train_step(
        student=STUDENT,
        teachers=[OnlineTeacher(TEACHER)],
        objective=objective,
        optimizer=optimizer,
        mesh=make_mesh(ParallelConfig(data=devices)),
        **keys,
    )
    state = init_state(STUDENT, optimizer, jax.random.key(0), step.mesh, projections=objective.projections)
    alone = init_state(STUDENT, optimizer, jax.random.key(0), step.mesh)
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)  # the student begins as it would
    state, taught = step.put_state(state), step.put_params([TEACHER.init(jax.random.key(7))])
    for _ in range(2):
        state, metrics = step(state, taught, make_batch(rows=16, fillers=2))
    assert step.trace_count == 1
    state = step.get_state(state)
    return jax.tree.map(np.asarray, (state.opt_state[0].trace, state.trained, metrics))


@pytest.fixture(scope="module")
def whole():
    return run()


def test_projections_are_trained_and_the_student_is_without_them(whole):
    gradients, trained, _ = whole
    shapes = {"embedding_mse": {"teacher_1": (1, 4, 6)}, "hidden_state_mse": {"teacher_1": (2, 4, 6)}}
    for tree in (gradients, trained):
        assert {
            term: {name: each.shape for name, each in own.items()} for term, own in tree["projections"].items()
        } == shapes
        assert tree["params"].keys() == {"word", "kernel"}
    assert all(np.abs(each).max() > 1e-3 for each in jax.tree.leaves(gradients["projections"]))


@pytest.mark.parametrize("keys", [{"accumulate": 2}, {"devices": 2}, {"devices": 2, "strategy": "pmap"}], ids=str)
def test_any_split_is_the_same_update(whole, keys):
    assert_same_step(run(**keys), whole)


@pytest.mark.slow
def test_a_mesh_shares_projections_as_it_shares_parameters():
    """Matrices and their moments lie over fsdp by the student's width; the update is that of one device."""
    shape = {"model_type": "bert", "vocab_size": 50, "num_attention_heads": 2, "intermediate_size": 12}
    student, teacher = (
        models.build(shape | {"hidden_size": width, "num_hidden_layers": 2, "max_position_embeddings": 16})
        for width in (8, 12)
    )
    objective = make_objective(
        [HiddenStateTerm("hidden_state_mse", projection="shared")], [1.0], depths=(2, 2), widths=(8, 12)
    )
    found = []
    for fsdp in (1, 2):
        optimizer, _ = build_optimizer(TrainConfig(steps=4, learning_rate=1e-2, warmup=0), 4)
        mesh = make_mesh(ParallelConfig(data=1, fsdp=fsdp))
        step = make_train_step(
            student=student, teachers=[OnlineTeacher(teacher)], objective=objective, optimizer=optimizer, mesh=mesh
        )
        state = init_state(student, optimizer, jax.random.key(0), mesh, projections=objective.projections)
        state, _ = step(
            state, step.put_params([jax.jit(teacher.init)(jax.random.key(7))]), make_batch(rows=8, fillers=2)
        )
        for tree in (state.projections, state.opt_state.mu["projections"], state.opt_state.nu["projections"]):
            expected = PartitionSpec(None, "fsdp") if fsdp > 1 else PartitionSpec()
            assert tree["hidden_state_mse"]["teacher_1"].sharding.spec == expected
        found.append(np.asarray(state.opt_state.mu["projections"]["hidden_state_mse"]["teacher_1"]))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-7)
