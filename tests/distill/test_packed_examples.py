"""Classification with several examples to a row: logits, losses and gradients are those of padded rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdistill import models
from jaxdistill.config.loss_schema import (
    AttentionKLTerm,
    CorrelationTerm,
    CrossEntropyTerm,
    DivergenceTerm,
    HiddenStateTerm,
    PatientTerm,
    RelationTerm,
)
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.data import TokenizedDataset
from jaxdistill.data.batching import assemble
from jaxdistill.data.example_packing import PackedShape, assemble_packed, bins
from jaxdistill.data.token_cache import Ragged
from jaxdistill.distill import CachedTeacher, OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import init_state, make_train_step

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


def made_dataset() -> TokenizedDataset:
    """40 examples of random tokens and two kinds of them; two tokenizers; some without a label."""
    rng = np.random.default_rng(0)
    encodings = []
    for pad_id in (0, 3):
        sizes = rng.integers(2, 20, 40)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        types = rng.integers(0, 2, offsets[-1]).astype(np.uint8)
        encodings.append(Ragged(rng.integers(5, 60, offsets[-1]).astype(np.int32), offsets, types, pad_id))
    longest = np.max([np.diff(encoding.offsets) for encoding in encodings], axis=0).astype(np.int32)
    labels = np.where(np.arange(40) % 7 == 3, -100, np.arange(40) % 3).astype(np.int32)
    return TokenizedDataset(tuple(encodings), labels, longest, 0, None, "made")


DATASET = made_dataset()
ROWS = np.random.default_rng(1).permutation(40)[:14]


def padded():
    return assemble(DATASET, ROWS, batch_size=16, lengths=(24,))


def packed(rows=8):
    shape = PackedShape(rows, 48, 4)
    return assemble_packed(DATASET, ROWS, bins(DATASET.lengths[ROWS], shape), shape)


def model(architecture="bert", **changes):
    config = {"model_type": architecture, **SHAPE, **changes}
    config |= {"roberta": {"type_vocab_size": 1, "pad_token_id": 1}, "bert_hash": {"projections": 4}}.get(
        architecture, {}
    )
    return models.build(models.config_from_hf(config), task="classification", num_labels=3)


def by_example(batch, values) -> np.ndarray:
    real = batch["example_id"] >= 0
    result = np.full((40, *np.shape(values)[real.ndim :]), np.nan)
    result[batch["example_id"][real]] = np.asarray(values)[real]
    return result


@pytest.mark.parametrize(
    ("architecture", "dropout"),
    [
        ("bert", True),
        ("roberta", False),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("roberta", "distilbert", "bert_hash")),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("bert", "distilbert", "bert_hash")),
    ],
)
def test_logits_are_those_of_padded_rows(architecture, dropout):
    """Every architecture, with and without dropout, whose masks are an example's own."""
    ours = model(architecture)
    params = jit(ours.init)(jax.random.key(0))
    key = jax.random.key(1) if dropout else None
    apply = jit(lambda params, batch: ours.apply(params, batch, ("logits",), key)["logits"])
    one, other = (by_example(batch, apply(params, batch)) for batch in (padded(), packed()))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert np.isfinite(one[ROWS]).all()


def test_no_example_sees_another():
    """A token changes the logits of its own example and of no other."""
    ours, batch = model(), packed()
    params = jit(ours.init)(jax.random.key(0))
    apply = jit(lambda batch: ours.apply(params, batch)["logits"])
    row, slot = int(np.argmax((batch["example_id"] >= 0).sum(1))), 1
    changed = {**batch, "input_ids": batch["input_ids"].copy()}
    changed["input_ids"][batch["segment_ids"] == 0] = 7  # padding counts for nothing
    changed["input_ids"][row, batch["segment_starts"][row, slot]] += 1
    before, after = np.asarray(apply(batch)), np.asarray(apply(changed))
    differs = (before != after).any(-1) & (batch["example_id"] >= 0)
    assert np.argwhere(differs).tolist() == [[row, slot]]


TERMS = {
    "logits": [
        DivergenceTerm("forward_kl", weight=0.7, temperature=2.0),
        CrossEntropyTerm("cross_entropy", weight=0.3),
    ],
    "features": [
        HiddenStateTerm(type="hidden_state_mse"),
        PatientTerm(type="patient"),
        AttentionKLTerm(type="attention_kl"),
        RelationTerm(type="relation_kl"),
        CorrelationTerm(type="dist"),
    ],
}


@pytest.mark.parametrize("terms", ["logits", pytest.param("features", marks=pytest.mark.slow)])
def test_losses_and_gradients_are_those_of_padded_rows(terms):
    ours, theirs = model(), model(hidden_dropout_prob=0.0)
    params, taught = jit(ours.init)(jax.random.key(0)), jit(theirs.init)(jax.random.key(5))
    objective = make_objective(TERMS[terms], [1.0], depths=(2, 2), total_steps=10)
    teacher = OnlineTeacher(theirs, 1 if terms == "logits" else 0)  # of another tokenizer, where only logits meet

    def loss(params, batch):
        learned = ours.apply(params, batch, objective.student_outputs, jax.random.key(2))
        signals = [teacher.signals(taught, batch, objective.outputs_of(0))]
        return objective(learned, signals, batch, counts=objective.counts(batch), step=jnp.int32(0))

    step = jit(jax.value_and_grad(loss, has_aux=True))
    ((one, metrics), gradient), ((other, others), its) = (step(params, batch) for batch in (padded(), packed()))
    np.testing.assert_allclose(other, one, rtol=1e-5)
    for name, pair in metrics.items():
        np.testing.assert_allclose(others[name], pair, rtol=2e-5, atol=1e-6, err_msg=name)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * largest), its, gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "devices", "accumulate"),
    [
        pytest.param("jit", 1, 2, id="parts"),
        pytest.param("jit", 8, 1, id="mesh"),
        pytest.param("pmap", 4, 2, id="pmap", marks=pytest.mark.long),
    ],
)
def test_any_split_of_packed_rows_is_the_same_update(strategy, devices, accumulate):
    """Against padded rows on one device; examples are spread unevenly over rows, and so over parts and devices."""
    student, optimizer = model(), optax.sgd(0.1)
    logits = np.random.default_rng(4).normal(0, 1, (40, 3)).astype(np.float32)
    ends = []
    for batch, options in ((padded(), {}), (packed(), {"strategy": strategy, "accumulate": accumulate})):
        mesh = make_mesh(ParallelConfig(data=devices if options else 1))
        step = make_train_step(
            student=student,
            teachers=[CachedTeacher()],
            objective=make_objective(TERMS["logits"], [1.0]),
            optimizer=optimizer,
            mesh=mesh,
            **options,
        )
        state = step.put_state(init_state(student, optimizer, jax.random.key(0), mesh))
        state, metrics = step(state, step.put_params([{"logits": logits}]), batch)
        ends.append((jax.tree.map(np.asarray, step.get_state(state).params), jax.device_get(metrics)))
    (one, metrics), (other, others) = ends
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), other, one)
