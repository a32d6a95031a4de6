"""Steps on labels at positions: the same for any split and padding, and the loss that SciPy makes of the logits."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from one_step import assert_same_step, one_step, repadded
from scipy.special import log_softmax, softmax
from toy_encoder import make_batch

from jaxdistill import models
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm, HiddenStateTerm

pytestmark = pytest.mark.slow

SHAPE = {"vocab_size": 50, "num_attention_heads": 2, "max_position_embeddings": 24, "hidden_size": 12}
SHAPE |= {"num_hidden_layers": 1, "intermediate_size": 16, "initializer_range": 0.3, "num_labels": 4}
TERMS = (
    DivergenceTerm("forward_kl", weight=0.5, temperature=2.0),
    CrossEntropyTerm("cross_entropy", weight=0.3),
    HiddenStateTerm("hidden_state_mse", weight=0.2),
)
TASKS = ("token_classification", "question_answering")
ROWS, LENGTH = 16, 10


def batch_of(task):
    """Rows of which the last three are fillers: every second token is labelled, or an answer in the second half."""
    rng = np.random.default_rng(4)
    batch = make_batch(rows=ROWS, length=LENGTH, fillers=3, unlabelled=0)
    mask = batch["attention_mask"] > 0
    places = np.arange(LENGTH)
    if task == "token_classification":
        labels = np.where(mask & (places % 2 == 1), rng.integers(0, 4, mask.shape), -100)
        return batch | {"labels": labels.astype(np.int32)}
    lengths = mask.sum(1)
    question = (places > 0) & (places < np.maximum(lengths // 2, 1)[:, None])
    p_mask = (question | ~mask).astype(np.int32)
    labels = np.stack([lengths // 2, lengths - 1], 1)
    labels[0] = 0  # "no answer here" stands at the first token
    labels[lengths == 0] = -100
    return batch | {"labels": labels.astype(np.int32), "p_mask": p_mask}


def longer(batch, extra):
    """The same with more padding, its content noise."""
    more = {"p_mask": 1, "labels": -100} if batch["labels"].shape[1] == LENGTH else {"p_mask": 1}
    widths = ((0, 0), (0, extra))
    padded = {name: np.pad(batch[name], widths, constant_values=fill) for name, fill in more.items() if name in batch}
    return repadded(batch, extra) | padded


@pytest.fixture(scope="module", params=TASKS)
def made(request):
    """(task, student, teachers, batch, one step on one device)."""
    student = models.build({"model_type": "bert", **SHAPE, "hidden_dropout_prob": 0.1}, task=request.param)
    shapes = [{"model_type": "bert", **SHAPE}, {"model_type": "roberta", **SHAPE, "pad_token_id": 0}]
    teachers = [models.build(shape, task=request.param) for shape in shapes]
    batch = batch_of(request.param)
    return request.param, student, teachers, batch, one_step(student, teachers, batch, terms=TERMS, depths=(1, 1, 1))


def test_any_split_and_padding_is_the_same_update(made):
    task, student, teachers, batch, expected = made
    split = one_step(student, teachers, longer(batch, 6), devices=4, accumulate=2, terms=TERMS, depths=(1, 1, 1))
    if (
        task == "question_answering"
    ):  # softmax over positions: what is added to all of them has no gradient but rounding
        for gradients, params, _ in (split, expected):
            assert np.abs(gradients["qa_outputs"].pop("bias")).max() < 1e-7
            del params["qa_outputs"]["bias"]
    assert_same_step(split, expected)


def test_the_losses_are_those_of_labelled_positions(made):
    """Two softmaxes over positions for answers, one over tags for every labelled word; teachers' mixed."""
    task, student, teachers, batch, (_, _, metrics) = made
    init_key, train_key = jax.random.split(jax.random.key(0))  # as init_state does it
    params = jax.jit(student.init)(init_key)
    frozen = [jax.jit(teacher.init)(jax.random.key(7 + k)) for k, teacher in enumerate(teachers)]
    theirs = [
        np.asarray(jax.jit(teacher.apply)(own, batch)["logits"], np.float64)
        for teacher, own in zip(teachers, frozen, strict=True)
    ]
    mixed = (2 * softmax(theirs[0] / 2, -1) + softmax(theirs[1] / 2, -1)) / 3
    key = jax.random.fold_in(train_key, 0)
    ours = np.asarray(jax.jit(lambda p, b: student.apply(p, b, key=key))(params, batch)["logits"], np.float64)
    where = batch["labels"] != -100
    if task == "question_answering":
        real = batch["example_id"] >= 0
        possible = (batch["p_mask"] == 0) & (batch["attention_mask"] > 0)
        assert (np.isfinite(ours) == possible[:, None]).all()
        assert where.sum() == 2 * real.sum()
    ce = kl = 0.0
    for place in zip(*np.nonzero(where), strict=True):
        ce -= log_softmax(ours[place])[batch["labels"][place]]
        p, logq = mixed[place], log_softmax(ours[place] / 2)
        some = p > 0
        kl += 4 * np.sum(p[some] * (np.log(p[some]) - logq[some]))
    for name, value in (("cross_entropy", ce), ("forward_kl", kl)):
        total, count = metrics[name]
        assert count == where.sum()
        np.testing.assert_allclose(total, value, rtol=1e-5)
    assert metrics["hidden_state_mse"][1] == batch["attention_mask"].sum()
