"""A word table's gradient as the rows of a batch: the same training as by the whole table's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import models
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import ParallelConfig, TrainConfig
from jaxdistill.data.stacking import stack
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import build_optimizer, init_state, make_train_step
from jaxdistill.train.rows import BatchRows
from jaxdistill.train.step import TrainStep
from jaxdistill.train.swept import SweptProgram, SweptState

VOCABULARY, ROWS, LENGTH = 3000, 8, 12
TERMS = (DivergenceTerm("forward_kl", weight=0.5, temperature=2.0), CrossEntropyTerm("cross_entropy", weight=0.5))


def encoder(architecture="bert", task="classification"):
    config = {"model_type": architecture, "vocab_size": VOCABULARY, "num_labels": 3}
    if architecture == "distilbert":
        config |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    else:
        config |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if architecture == "bert_hash":
        config["projections"] = 5
    return models.build(config, task=task)


def batch_of(seed, length=LENGTH):
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 60, (ROWS, length)).astype(np.int32)  # most tokens several times
    mask = (np.arange(length) < rng.integers(2, length, (ROWS, 1))).astype(np.int32)
    ids = np.where(mask > 0, ids, 1)
    ids[0, 0], ids[1, 0] = 0, VOCABULARY - 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
        "labels": rng.integers(0, 3, ROWS).astype(np.int32),
        "example_id": np.arange(ROWS, dtype=np.int32),
    }


def optimizer_of(*, by_rows, clip=1.0, moment="float32"):
    train = TrainConfig(steps=20, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=clip, moment=moment)
    optimizer = build_optimizer(train, 20)[0]
    return optimizer if by_rows else optimizer._replace(takes_rows=False)


def trainer(student, *, by_rows, accumulate=1, devices=1, clip=1.0, moment="float32"):
    optimizer = optimizer_of(by_rows=by_rows, clip=clip, moment=moment)
    mesh = make_mesh(ParallelConfig(data=devices))
    step = make_train_step(
        student=student,
        teachers=[OnlineTeacher(student)],
        objective=make_objective(TERMS, (1.0,)),
        optimizer=optimizer,
        mesh=mesh,
        accumulate=accumulate,
    )
    state = step.put_state(init_state(student, optimizer, jax.random.key(0), mesh))
    return step, state, step.put_params((jax.jit(student.init)(jax.random.key(1)),))


def after(steps, student, **options):
    """State and metrics after so many steps, on the host."""
    step, state, taught = trainer(student, **options)
    for seed in range(steps):
        state, metrics = step(state, taught, batch_of(seed))
    return jax.tree.map(np.asarray, (state.params, state.opt_state, metrics))


def shapes_made(student, length=LENGTH, **options):
    """The shapes of everything that a step fills with one value."""
    step, state, taught = trainer(student, **options)
    text = str(step.jaxpr(state, taught, batch_of(0, length)))
    return {part.split(" = broadcast_in_dim")[0].split(":")[-1] for part in text.splitlines() if "broadcast_in" in part}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("bert", {"accumulate": 2}),
        pytest.param("bert_hash", {"clip": None}, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("roberta", {"clip": 0.01}, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("distilbert", {}, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_training_is_that_of_the_whole_gradient(architecture, options):
    student = encoder(architecture)
    rows, whole = (after(6, student, by_rows=by_rows, **options) for by_rows in (True, False))

    def close(path, a, b):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))

    jax.tree.map_with_path(close, rows, whole)
    table = rows[0]["embeddings"]["word_table" if architecture == "bert_hash" else "word"]
    assert len(np.unique(table.round(6), axis=0)) > 1000  # rows that no batch has are as they were, and only decayed


@pytest.mark.slow
def test_several_students_share_the_rows():
    student, mesh = encoder(), make_mesh(ParallelConfig(data=1))
    objective, ends = make_objective(TERMS, (1.0,)), []
    for by_rows in (True, False):
        optimizer = optimizer_of(by_rows=by_rows)
        program = SweptProgram(student, (OnlineTeacher(student),), objective, optimizer, 1)
        states = [init_state(student, optimizer, jax.random.key(seed), mesh) for seed in range(2)]
        step = TrainStep(program, mesh, strategy="jit", donate=True)
        state = step.put_state(SweptState.stacked(states, {}, (1.0, 0.5)))
        taught = step.put_params((jax.jit(student.init)(jax.random.key(7)),))
        state, _ = step.many(state, taught, stack([batch_of(seed) for seed in range(3)], 3), 3)
        ends.append(jax.tree.map(np.asarray, state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *ends)


def test_nothing_as_large_as_the_table_is_filled():
    table = f"f32[{VOCABULARY},16]"
    assert table not in shapes_made(encoder(), by_rows=True)
    assert table in shapes_made(encoder(), by_rows=False)


@pytest.mark.parametrize(
    ("student", "options"),
    [
        (encoder(), {"devices": 2}),  # devices have different rows
        (encoder(), {"moment": "bfloat16"}),  # would be rounded twice
        (encoder(), {"length": 256}),  # nearly as many tokens as rows
    ],
)
def test_where_the_whole_gradient_is_kept(student, options):
    assert f"f32[{VOCABULARY},16]" in shapes_made(student, by_rows=True, **options)


def test_a_table_that_is_a_head_as_well_is_none():
    assert encoder(task="masked_lm").word_table is None
    assert encoder(task="token_classification").word_table == ("embeddings", "word")
    assert encoder("bert_hash", task="question_answering").word_table == ("embeddings", "word_table")


def test_a_skipped_step_changes_nothing():
    step, state, taught = trainer(encoder(), by_rows=True)
    state, _ = step(state, taught, batch_of(0))
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    bad = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), taught)
    state, metrics = step(state, bad, batch_of(1))
    assert metrics["skipped"][0] == 1
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)


def test_each_row_has_one_slot():
    table = jnp.arange(2000.0).reshape(100, 20)
    ids = np.array([[7, 7, 3], [3, 250, -4]])  # beyond the table: its last row, its first
    found = BatchRows.of(("table",), table, ids)
    assert found is not None
    assert found.places.tolist() == [7, 101, 3, 103, 99, 0]
    looked_up = found.looked_up(found.taken({"table": table, "other": 1}))["table"]
    expected = np.asarray(table)[[7, 7, 3, 3, 99, 0]]
    np.testing.assert_array_equal(looked_up.rows[looked_up.slots[ids.reshape(-1).clip(0, 99)]], expected)
    assert BatchRows.of(("table",), table, np.zeros((10, 6), int)) is None
