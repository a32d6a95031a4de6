"""Packed batches hold the same examples as padded ones, whole, in few shapes, and go on anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import make_dataset

from jaxdistill.data import packed_shapes, steps_per_epoch, train_iterator, widest_packed
from jaxdistill.data.example_packing import PackedPlan, PackedShape, bins

LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=120)


def check_batch(batch: dict, dataset) -> None:
    """Every example lies whole in its row, at its start, under its own segment number; nothing else is there."""
    real = batch["example_id"] >= 0
    assert (batch["labels"][real] == dataset.labels[batch["example_id"][real]]).all()
    assert (batch["labels"][~real] == -100).all()
    for place, tokens in enumerate([batch, *batch.get("tokenizers", {}).values()]):
        encoding, seen = dataset.encodings[place], np.zeros(tokens["input_ids"].shape, bool)
        for row, slot in zip(*np.nonzero(real), strict=True):
            example, start = batch["example_id"][row, slot], tokens["segment_starts"][row, slot]
            own = slice(*encoding.offsets[example : example + 2])
            size = own.stop - own.start
            at = slice(start, start + size)
            assert tokens["input_ids"][row, at].tolist() == encoding.ids[own].tolist()
            assert tokens["token_type_ids"][row, at].tolist() == encoding.types[own].tolist()
            assert tokens["positions"][row, at].tolist() == list(range(size))
            assert (tokens["segment_ids"][row, at] == slot + 1).all()
            assert not seen[row, at].any()
            seen[row, at] = True
        assert (tokens["attention_mask"] == seen).all()
        assert not tokens["segment_ids"][~seen].any()
        assert (tokens["input_ids"][~seen] == encoding.pad_id).all()
        assert all(array.dtype == np.int32 for name, array in tokens.items() if name != "tokenizers")


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.integers(1, 33), st.integers(0, 99), st.sampled_from([1, 2, 4]), st.integers(1, 2))
def test_every_example_once_an_epoch(lengths, batch_size, seed, multiple, tokenizers) -> None:
    dataset = make_dataset(lengths, tokenizers=tokenizers)
    batch_size *= multiple
    shapes = packed_shapes(dataset, batch_size, multiple=multiple)
    assert 1 <= len(shapes) <= 8
    assert all(shape.rows % multiple == 0 for shape in shapes)
    steps = steps_per_epoch(len(lengths), batch_size)
    plan = PackedPlan(dataset, batch_size=batch_size, seed=seed, window=4, shapes=shapes, steps=steps)
    batches = [plan[index] for index in range(steps)]
    ids = [batch["example_id"][batch["example_id"] >= 0] for batch in batches]
    assert sorted(np.concatenate(ids)) == list(range(len(lengths)))
    assert all(len(some) == batch_size for some in ids[:-1])  # as many in every update
    known = {(shape.rows, shape.length, shape.slots) for shape in shapes}
    for batch in batches:
        assert (*batch["input_ids"].shape, batch["labels"].shape[1]) in known
    check_batch(batches[-1], dataset)
    check_batch(widest_packed(dataset, batch_size, shapes), dataset)


def test_little_is_wasted_on_lengths_like_those_of_sentences() -> None:
    rng = np.random.default_rng(0)
    dataset = make_dataset(np.minimum(3 + rng.geometric(0.09, 4000), 66).tolist())

    def slots(batching: str, lengths=None) -> int:
        batches = train_iterator(dataset, batch_size=32, seed=0, batching=batching, lengths=lengths, steps=120)
        return sum(batch["input_ids"].size for batch in batches)

    packed = slots("packed", packed_shapes(dataset, 32))
    real = 120 * 32 * dataset.lengths.mean()
    assert packed < 1.2 * real
    assert packed < 0.5 * slots("padded")


def test_rows_are_filled_evenly_or_not_at_all() -> None:
    shape = PackedShape(2, 10, 3)
    assert bins(np.array([9, 2, 3, 4]), shape) == [[0], [3, 2, 1]]
    assert bins(np.array([9, 2, 3, 7]), shape) is None  # 21 tokens
    assert bins(np.array([6, 6, 6]), shape) is None  # no two share a row
    assert bins(np.ones(7, np.int64), shape) is None  # seven examples for six places


@pytest.mark.parametrize("stop", [0, 3, 11])
def test_resume_anywhere_gives_the_same_batches(stop: int) -> None:
    dataset = make_dataset(np.random.default_rng(1).integers(1, 60, 90).tolist())
    arguments = {"batch_size": 8, "seed": 5, "batching": "packed", "shuffle_window": 3, "epochs": 1.5}
    whole = list(train_iterator(dataset, **arguments))
    first, second = (train_iterator(dataset, **arguments) for _ in range(2))
    for _ in range(stop):
        next(first)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == len(whole) - stop
    for expected, batch in zip(whole[stop:], rest, strict=True):
        assert all(np.array_equal(expected[name], batch[name]) for name in expected)


def test_the_order_does_not_depend_on_the_shapes() -> None:
    """Shapes follow the devices, and a run may be continued on others."""
    dataset = make_dataset(np.random.default_rng(2).integers(1, 60, 200).tolist())
    orders = []
    for multiple in (1, 8):
        shapes = packed_shapes(dataset, 16, multiple=multiple)
        plan = PackedPlan(dataset, batch_size=16, seed=0, window=6, shapes=shapes, steps=12)
        orders.append([sorted(plan[i]["example_id"][plan[i]["example_id"] >= 0]) for i in range(12)])
    assert orders[0] == orders[1]
