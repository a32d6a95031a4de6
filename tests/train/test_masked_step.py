"""Masked language models: heads and losses at masked positions alone, packed rows, and what the step compiles to."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from jaxdistill import models
from jaxdistill.config.loss_schema import CosineTerm, CrossEntropyTerm, DivergenceTerm, RelationTerm
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.distill import Objective, OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step
from jaxdistill.train.evaluate_text import measure_tokens

B, S, K, V = 8, 20, 5, 1009
"""The vocabulary is a prime: no other product of sizes is a multiple of it."""

SHAPE = {"vocab_size": V, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
SHAPE |= {"max_position_embeddings": S + 2, "initializer_range": 0.3}  # RoBERTa has two for padding
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TERMS = (
    DivergenceTerm("forward_kl", weight=5.0, temperature=2.0),
    CrossEntropyTerm("cross_entropy", weight=2.0),
    CosineTerm("cosine"),
    RelationTerm("relation_kl", weight=0.5),
)
STUDENT, TEACHER = (
    models.build({"model_type": model_type, **SHAPE, **PLAIN, "hidden_size": 16}, task="masked_lm")
    for model_type in ("bert", "roberta")
)


@pytest.fixture(scope="module")
def params() -> tuple[Any, Any]:
    def noisy(model: models.Model, seed: int) -> Any:
        """Fresh biases are 0, and would hide that one is forgotten."""
        fresh = jax.jit(model.init)(jax.random.key(seed))
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), fresh)

    return noisy(STUDENT, 0), noisy(TEACHER, 1)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows of one to three texts and padding, with up to K masked tokens; the last row is a filler."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, V, (B, S))
    segments, positions = np.zeros((2, B, S), np.int64)
    masked, labels = np.zeros((B, K), np.int64), np.full((B, K), -100)
    for row in range(B - 1):
        ends = np.sort(rng.choice(np.arange(3, S + 1), 1 + row % 3, replace=False))
        for segment, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
            segments[row, start:end] = segment
            positions[row, start:end] = np.arange(end - start)
        count = 1 + row % K
        masked[row, :count] = np.sort(rng.choice(ends[-1], min(count, ends[-1]), replace=False))
        labels[row, :count] = rng.integers(5, V, count)
    arrays = {
        "input_ids": ids,
        "attention_mask": segments > 0,
        "segment_ids": segments,
        "positions": positions,
        "masked_positions": masked,
        "labels": labels,
        "example_id": np.where(np.arange(B) < B - 1, np.arange(B), -1),
    }
    return {name: np.asarray(array, np.int32) for name, array in arrays.items()}


def objective_of(fused: str) -> Objective:
    return make_objective(TERMS, [1.0], fused=fused, depths=(2, 2))  # pyright: ignore[reportArgumentType]


def measured(objective: Objective, params: tuple[Any, Any], batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Loss and the terms' sums."""

    @jax.jit
    def evaluate(ours: Any, theirs: Any, batch: Any) -> Any:
        student = STUDENT.apply(ours, batch, objective.student_outputs)
        teacher = TEACHER.apply(theirs, batch, objective.outputs_of(0))
        return objective(student, [teacher], batch, counts=objective.counts(batch))

    loss, metrics = evaluate(*params, batch)
    return {"loss": np.asarray(loss)} | {name: np.asarray(pair) for name, pair in metrics.items()}


@pytest.fixture(scope="module")
def dense(params: tuple[Any, Any], batch: dict[str, np.ndarray]) -> dict[str, Any]:
    return measured(objective_of("off"), params, batch)


def test_the_loss_is_that_of_whole_logits(
    params: tuple[Any, Any], batch: dict[str, np.ndarray], dense: dict[str, Any]
) -> None:
    """In float64, from logits at every position."""
    whole = {name: array for name, array in batch.items() if name != "masked_positions"}
    logits = [
        np.asarray(jax.jit(lambda p, model=model: model.apply(p, whole)["logits"])(own), np.float64)
        for model, own in zip((STUDENT, TEACHER), params, strict=True)
    ]
    rows, places = np.nonzero(batch["labels"] >= 0)
    student, teacher = (each[rows, batch["masked_positions"][rows, places]] for each in logits)
    labels = batch["labels"][rows, places]
    entropy = -log_softmax(student, -1)[np.arange(len(labels)), labels]
    p, q = log_softmax(teacher / 2, -1), log_softmax(student / 2, -1)
    divergence = 4 * (np.exp(p) * (p - q)).sum(-1)
    fused = measured(objective_of("on"), params, batch)
    for found in (dense, fused):
        np.testing.assert_allclose(found["cross_entropy"], [entropy.sum(), len(labels)], rtol=1e-5)
        np.testing.assert_allclose(found["forward_kl"], [divergence.sum(), len(labels)], rtol=1e-5)
        assert found["cosine"][1] == found["relation_kl"][1] == batch["attention_mask"].sum()
    np.testing.assert_allclose(fused["loss"], dense["loss"], rtol=1e-5)
    values = measure_tokens(params[0], [params[1]], batch, student=STUDENT, teachers=(OnlineTeacher(TEACHER),))
    np.testing.assert_allclose(np.asarray(values["loss"])[rows, places], entropy, rtol=2e-5)
    where = batch["labels"] >= 0
    agreement = (student.argmax(-1) == teacher.argmax(-1)).astype(float)
    np.testing.assert_array_equal(np.asarray(values["agreement"])[where], agreement)
    assert not np.asarray(values["kl"])[~where].any()


def test_texts_packed_into_rows_are_texts_by_themselves(
    params: tuple[Any, Any], batch: dict[str, np.ndarray], dense: dict[str, Any]
) -> None:
    """One text a row, padded with noise, and neither segments nor positions."""
    noise = np.random.default_rng(1).integers(5, V, (64, S))
    names = ("input_ids", "attention_mask", "masked_positions", "labels", "example_id")
    apart = {name: [] for name in names}
    for row in range(B - 1):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            own = np.flatnonzero(batch["segment_ids"][row] == segment)
            here = (batch["labels"][row] >= 0) & np.isin(batch["masked_positions"][row], own)
            number = len(apart["example_id"])
            ids = noise[number].copy()
            ids[: len(own)] = batch["input_ids"][row, own]
            apart["input_ids"].append(ids)
            apart["attention_mask"].append(np.arange(S) < len(own))
            apart["masked_positions"].append(np.where(here, batch["masked_positions"][row] - own[0], 0))
            apart["labels"].append(np.where(here, batch["labels"][row], -100))
            apart["example_id"].append(number)
    alone = {name: np.asarray(values, np.int32) for name, values in apart.items()}
    found = measured(objective_of("off"), params, alone)
    for name in ("cross_entropy", "forward_kl", "cosine", "relation_kl"):
        np.testing.assert_allclose(found[name], dense[name], rtol=2e-5, err_msg=name)


# --- the step --------------------------------------------------------------------------------------------------------


def one_step(params: tuple[Any, Any], batch: dict[str, np.ndarray], *, devices: int, accumulate: int) -> Any:
    """(gradient, metrics, compiled text) of a step."""
    optimizer = optax.chain(optax.trace(0.0), optax.scale(-0.1))  # the trace keeps the gradient as it came
    mesh = make_mesh(ParallelConfig(data=devices))
    step = make_train_step(
        student=STUDENT,
        teachers=[OnlineTeacher(TEACHER)],
        objective=objective_of("on"),
        optimizer=optimizer,
        mesh=mesh,
        accumulate=accumulate,
    )
    state = step.put_state(init_state(params[0], optimizer, jax.random.key(0), mesh))
    placed = step.put_params([params[1]])
    compiled = step.lower(state, placed, batch).compile()
    state, metrics = step(state, placed, batch)
    return *jax.tree.map(np.asarray, (state.opt_state[0].trace, metrics)), compiled.as_text()


@pytest.fixture(scope="module")
def alone(params: tuple[Any, Any], batch: dict[str, np.ndarray]) -> Any:
    return one_step(params, batch, devices=1, accumulate=1)


def test_no_logits_of_all_tokens_nor_of_all_masked_ones(alone: Any) -> None:
    found = [
        int(np.prod([int(size) for size in sizes.split(",")])) for sizes in re.findall(r"\w\[([\d,]+)\]", alone[2])
    ]
    of_classes = {size // V for size in found if size % V == 0}
    assert max(of_classes) < B * K  # tables are 16 wide, and one wider with their bias
    assert max(found) < B * K * V


def test_whole_logits_are_those_of_masked_positions(params: tuple[Any, Any], batch: dict[str, np.ndarray]) -> None:
    objective = objective_of("off")

    def loss(ours: Any, theirs: Any) -> Any:
        student = STUDENT.apply(ours, batch, objective.student_outputs)
        teacher = TEACHER.apply(theirs, batch, objective.outputs_of(0))
        return objective(student, [teacher], batch, counts=objective.counts(batch))[0]

    text = str(jax.make_jaxpr(jax.grad(loss))(*params))
    sizes = {int(np.prod([int(size) for size in shape.split(",")])) for shape in re.findall(r"f32\[([\d,]+)\]", text)}
    assert B * K * V in sizes
    assert max(sizes) == B * K * V


@pytest.mark.slow
def test_micro_batches_on_several_devices_are_the_same_step(
    params: tuple[Any, Any], batch: dict[str, np.ndarray], alone: Any
) -> None:
    gradients, metrics, _ = one_step(params, batch, devices=4, accumulate=2)

    def close(path: Any, ours: Any, theirs: Any) -> None:
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6 * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree.map_with_path(close, gradients, alone[0])
    for name, (total, count) in alone[1].items():
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-5, err_msg=name)
        assert metrics[name][1] == count, name
