"""The same batch gives the same loss, gradients and parameters however it is split and padded.

Dropout is on: its masks depend on the example alone. The last rows are filler, some have no label, and a device's share
of either differs from every other's. The toy covers the splits, the real encoders what only they can get wrong.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from one_step import assert_same_step, one_step, repadded
from toy_encoder import ToyEncoder, make_batch

from jaxdistill import models

TOY = (ToyEncoder(dropout=0.1), (ToyEncoder(hidden_size=24), ToyEncoder(hidden_size=8)))
SHAPE = {"vocab_size": 50, "num_attention_heads": 2, "max_position_embeddings": 24, "hidden_dropout_prob": 0.1}
STUDENT = {"model_type": "bert_hash", **SHAPE, "hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 24}
TEACHER = {"model_type": "bert", **SHAPE, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
BERT = (models.build(STUDENT, num_labels=3), (models.build(TEACHER, num_labels=3),))
BATCH = make_batch()


@pytest.fixture(scope="module")
def toy_step():
    return one_step(*TOY, BATCH)


@pytest.fixture(scope="module")
def bert_step():
    return one_step(*BERT, BATCH)


@pytest.mark.parametrize(
    ("strategy", "devices", "accumulate"),
    [
        ("jit", 1, 4),
        ("jit", 1, 64),
        ("jit", 8, 1),
        ("jit", 4, 2),
        ("pmap", 8, 1),
        pytest.param("pmap", 8, 4, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_any_split_of_a_batch_is_the_same_update(toy_step, strategy, devices, accumulate):
    assert_same_step(one_step(*TOY, BATCH, strategy=strategy, devices=devices, accumulate=accumulate), toy_step)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "devices", "accumulate"), [("jit", 8, 2), ("pmap", 8, 1)])
def test_any_split_is_the_same_update_of_real_encoders(bert_step, strategy, devices, accumulate):
    assert_same_step(one_step(*BERT, BATCH, strategy=strategy, devices=devices, accumulate=accumulate), bert_step)


def test_padding_content_and_length_are_irrelevant_to_real_encoders(bert_step):
    assert_same_step(one_step(*BERT, repadded(BATCH, 8)), bert_step)


def test_filler_rows_are_as_if_they_were_not_there(toy_step):
    real = BATCH["example_id"] >= 0
    assert_same_step(one_step(*TOY, jax.tree.map(lambda x: x[real], BATCH)), toy_step)


def test_row_order_is_irrelevant(toy_step):
    order = np.random.default_rng(1).permutation(64)
    assert_same_step(one_step(*TOY, jax.tree.map(lambda x: x[order], BATCH), devices=8), toy_step)
