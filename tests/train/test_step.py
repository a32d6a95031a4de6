"""The compiled step: one program, traced once; what it must not change, and what it does with bad numbers."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_encoder import ToyEncoder, make_batch

from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import ParallelConfig, TrainConfig
from jaxdistill.distill import CachedTeacher, OnlineTeacher, make_objective
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import make_mesh
from jaxdistill.train import build_optimizer, init_state, make_train_step

STUDENT = ToyEncoder(hidden_size=16, dropout=0.1)
TEACHER = ToyEncoder(hidden_size=24)
OBJECTIVE = make_objective(
    [DivergenceTerm("forward_kl", weight=0.7, temperature=2.0), CrossEntropyTerm("cross_entropy", weight=0.3)], [1.0]
)


def make(devices=1, optimizer=None, **options):
    optimizer = optimizer or optax.sgd(0.1)
    mesh = make_mesh(ParallelConfig(data=devices))
    step = make_train_step(
        student=STUDENT,
        teachers=[OnlineTeacher(TEACHER)],
        objective=OBJECTIVE,
        optimizer=optimizer,
        mesh=mesh,
        **options,
    )
    state = step.put_state(init_state(STUDENT, optimizer, jax.random.key(0), mesh))
    return step, state, step.put_params([TEACHER.init(jax.random.key(7))])


def host(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_one_trace_per_batch_shape(strategy):
    step, state, teacher = make(devices=8, strategy=strategy, optimizer=optax.adamw(1e-3))
    for length in (12, 8, 12, 8, 12):
        state, _ = step(state, teacher, make_batch(length=length))
    assert step.trace_count == 2
    # a placed batch and a host batch are the same program
    step(state, teacher, step.put_batch(make_batch(length=8)))
    assert step.trace_count == 2


def test_the_state_is_donated_and_the_teacher_is_not():
    step, state, teacher = make(optimizer=optax.adamw(1e-3))
    before = host(teacher)
    word = state.params["embeddings"]["word"]
    new, _ = step(state, teacher, make_batch())
    assert word.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(teacher))
    jax.tree.map(np.testing.assert_array_equal, before, host(teacher))
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_the_callers_parameters_survive_a_donated_state():
    optimizer = optax.sgd(0.1)
    params = jax.jit(STUDENT.init)(jax.random.key(0))
    step, _, teacher = make(optimizer=optimizer)
    state = step.put_state(init_state(params, optimizer, jax.random.key(1)))
    step(state, teacher, make_batch())
    assert np.isfinite(np.asarray(params["embeddings"]["word"])).all()


def test_teacher_and_student_are_one_executable_and_the_whole_state_is_updated_in_place():
    step, state, teacher = make(optimizer=optax.adamw(1e-3))
    text = step.lower(state, teacher, make_batch()).compile().as_text()
    entry = text[text.index("ENTRY") :]
    # both models' embedding tables enter one program, and only the student's leaves it
    assert entry.count("f32[50,24]{1,0} parameter(") == 1
    assert entry.count("f32[50,16]{1,0} parameter(") == 3  # params and AdamW's two moments
    header = text[: text.index("\n")]
    aliased = re.findall(r"\{\d+\}: \(\d+, \{\}", header)
    assert len(aliased) == len(jax.tree.leaves(state))
    outputs = header[header.index("->") :]
    assert "f32[50,24]" not in outputs


def test_adamw_updates_every_array_in_place():
    optimizer, _ = build_optimizer(TrainConfig(steps=10), 10)
    step, state, teacher = make(optimizer=optimizer)
    text = step.lower(state, teacher, make_batch()).compile().as_text()
    copies = [line for line in text.splitlines() if re.search(r"= f32\[50,16\]\S* copy\(", line)]
    assert copies == []


def test_no_gradient_reaches_the_teacher():
    batch = jax.tree.map(jnp.asarray, make_batch())
    student = STUDENT.init(jax.random.key(0))

    def loss(teacher):
        signals = [OnlineTeacher(TEACHER).signals(teacher, batch, OBJECTIVE.teacher_outputs)]
        learned = STUDENT.apply(student, batch, OBJECTIVE.student_outputs)
        return OBJECTIVE(learned, signals, batch, counts=OBJECTIVE.counts(batch))[0]

    gradients = jax.grad(loss)(TEACHER.init(jax.random.key(7)))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("strategy", "devices", "accumulate"), [("jit", 1, 1), ("jit", 8, 2), ("pmap", 8, 1)])
def test_a_non_finite_update_is_skipped_and_counted(strategy, devices, accumulate):
    step, state, teacher = make(
        devices, optimizer=optax.adamw(1e-2), strategy=strategy, accumulate=accumulate, donate=False
    )
    poisoned = step.put_params([jax.tree.map(lambda x: np.asarray(x) * np.nan, TEACHER.init(jax.random.key(7)))])
    batch = make_batch()
    state, _ = step(state, teacher, batch)
    bad = state
    for _ in range(2):
        bad, metrics = step(bad, poisoned, batch)
    before, after = host(step.get_state(state).params), host(step.get_state(bad).params)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    jax.tree.map(
        np.testing.assert_array_equal, host(step.get_state(state).opt_state), host(step.get_state(bad).opt_state)
    )
    seen = step.get_state(bad)
    assert (int(seen.step), int(seen.skipped), int(seen.skipped_in_a_row)) == (3, 2, 2)
    assert step.skipped_in_a_row(bad) == 2
    assert host(metrics.pop("skipped")) == (1.0, 1.0)
    assert all(host(pair) == (0.0, 0.0) for pair in metrics.values())
    good, metrics = step(bad, teacher, batch)
    seen = step.get_state(good)
    assert (int(seen.step), int(seen.skipped), int(seen.skipped_in_a_row)) == (4, 2, 0)
    assert host(metrics["skipped"]) == (0.0, 1.0)
    assert not np.array_equal(after["hidden"]["kernel"], np.asarray(seen.params["hidden"]["kernel"]))


def test_a_batch_of_filler_rows_alone_changes_nothing():
    step, state, teacher = make()
    before = host(state.params)
    batch = make_batch(fillers=64, unlabelled=0)
    new, metrics = step(state, teacher, batch)
    jax.tree.map(np.testing.assert_array_equal, before, host(new.params))
    assert int(new.skipped) == 0
    assert host(metrics["loss"]) == (0.0, 0.0)


def test_dropout_differs_between_steps_and_repeats_with_the_key():
    first, state, teacher = make(optimizer=optax.sgd(0.0), donate=False)
    batch = make_batch()
    one, a = first(state, teacher, batch)
    _, b = first(one, teacher, batch)
    _, again = first(state, teacher, batch)
    assert host(a["loss"]) == host(again["loss"])
    assert host(a["loss"]) != host(b["loss"])


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_a_batch_that_cannot_be_divided_is_refused_with_the_numbers(strategy):
    step, state, teacher = make(devices=8, strategy=strategy, accumulate=4)
    with pytest.raises(ConfigError, match=r"48 examples .* 8 .* × 4 .* multiple of 32, such as 32 or 64"):
        step(state, teacher, make_batch(rows=48))
    assert step.trace_count == 0


def test_pmap_wants_a_placed_state():
    step, state, teacher = make(devices=8, strategy="pmap")
    with pytest.raises(ValueError, match=r"put_state"):
        step(step.get_state(state), teacher, make_batch())


def test_get_state_undoes_put_state():
    step, state, _ = make(devices=8, strategy="pmap", optimizer=optax.adamw(1e-3))
    plain = step.get_state(state)
    assert plain.params["embeddings"]["word"].shape == (50, 16)
    again = step.get_state(step.put_state(plain))
    jax.tree.map(np.testing.assert_array_equal, host(again.params), host(plain.params))
    assert jnp.array_equal(jax.random.key_data(again.key), jax.random.key_data(plain.key))


def test_a_cached_teacher_teaches_what_the_online_one_does():
    batch = make_batch()
    params = TEACHER.init(jax.random.key(7))
    logits = np.zeros((64, 3), np.float32)
    real = batch["example_id"] >= 0
    logits[batch["example_id"][real]] = np.asarray(TEACHER.apply(params, batch)["logits"])[real]
    online, state, teacher = make(donate=False)
    cached = make_train_step(
        student=STUDENT, teachers=[CachedTeacher()], objective=OBJECTIVE, optimizer=optax.sgd(0.1), donate=False
    )
    a, _ = online(state, teacher, batch)
    b, _ = cached(state, cached.put_params([{"logits": logits}]), batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), host(a.params), host(b.params))


def test_an_objective_that_reads_a_teacher_needs_one():
    with pytest.raises(ConfigError, match="teacher"):
        make_train_step(student=STUDENT, objective=OBJECTIVE, optimizer=optax.sgd(0.1))
