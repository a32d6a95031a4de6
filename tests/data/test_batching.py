"""The batch plan: every row once an epoch, bounded padding, and any batch without those before it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import make_dataset

from jaxdistill.data import bucket_lengths, eval_batches, steps_per_epoch, total_steps, train_iterator
from jaxdistill.data.batching import TrainPlan

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200)


def _real(batch: dict) -> np.ndarray:
    return batch["example_id"][batch["example_id"] >= 0]


def _check_batch(batch: dict, dataset, batch_size: int) -> None:
    """Every row holds its own tokens, then padding; filler rows hold nothing."""
    for place, tokens in enumerate([batch, *batch.get("tokenizers", {}).values()]):
        encoding = dataset.encodings[place]
        ids, mask, types = (tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        assert ids.shape == mask.shape == types.shape == (batch_size, batch["input_ids"].shape[1])
        assert ids.dtype == mask.dtype == types.dtype == np.int32
        for row, example in enumerate(batch["example_id"]):
            start, stop = (encoding.offsets[example], encoding.offsets[example + 1]) if example >= 0 else (0, 0)
            size = stop - start
            assert ids[row, :size].tolist() == encoding.ids[start:stop].tolist()
            assert types[row, :size].tolist() == encoding.types[start:stop].tolist()
            assert (ids[row, size:] == encoding.pad_id).all()
            assert mask[row].tolist() == [1] * size + [0] * (ids.shape[1] - size)
            assert not types[row, size:].any()
    real = batch["example_id"] >= 0
    assert batch["labels"].dtype == batch["example_id"].dtype == np.int32
    assert (batch["labels"][real] == dataset.labels[batch["example_id"][real]]).all()
    assert (batch["labels"][~real] == -100).all()


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**40), st.integers(1, 7), st.integers(1, 2))
def test_every_row_once_an_epoch(lengths: list[int], batch_size: int, seed: int, window: int, tokenizers: int) -> None:
    dataset = make_dataset(lengths, tokenizers=tokenizers)
    static = bucket_lengths(dataset)
    per_epoch = steps_per_epoch(len(lengths), batch_size)
    plan = TrainPlan(dataset, batch_size=batch_size, seed=seed, window=window, lengths=static, steps=3 * per_epoch)
    for epoch in range(3):
        batches = [plan[epoch * per_epoch + place] for place in range(per_epoch)]
        assert sorted(np.concatenate([_real(batch) for batch in batches])) == list(range(len(lengths)))
        assert all(len(_real(batch)) == batch_size for batch in batches[:-1])
        assert {batch["input_ids"].shape[1] for batch in batches} <= set(static)
    for batch in batches:
        _check_batch(batch, dataset, batch_size)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.one_of(st.none(), st.integers(300, 320)), st.one_of(st.none(), st.integers(1, 10**5)))
def test_static_lengths_are_few_and_hold_every_row(lengths: list[int], limit: int | None, steps: int | None) -> None:
    dataset = make_dataset(lengths, max_length=limit)
    static = bucket_lengths(dataset, steps=steps)
    assert 1 <= len(static) <= 8
    assert list(static) == sorted(set(static))
    assert static[-1] >= max(lengths)
    assert limit is None or static[-1] <= limit
    assert all(length % 4 == 0 or length in (limit, max(lengths)) for length in static)


def test_static_lengths_beyond_the_list_and_at_the_limit() -> None:
    assert bucket_lengths(make_dataset([700] * 9)) == (768,)
    assert bucket_lengths(make_dataset([1025] * 9)) == (1280,)
    assert bucket_lengths(make_dataset([50] * 9, max_length=50)) == (50,)
    assert bucket_lengths(make_dataset([50] * 9), 54) == (54,)


def test_static_lengths_are_as_cheap_as_any_eight() -> None:
    """Against all choices, by brute force, of a spread that needs more than it may have."""
    import itertools

    lengths = [3, 9, 14, 17, 22, 30, 37, 45, 55, 61, 70, 79] * 5
    dataset = make_dataset(lengths)
    candidates = [8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72]

    def cost(choice: tuple[int, ...]) -> float:
        edges = (*choice, 80)
        return sum(next(e for e in edges if e >= n) for n in lengths) + 0.01 * len(edges) * sum(lengths)

    choices = itertools.chain.from_iterable(itertools.combinations(candidates, size) for size in range(8))
    assert cost(bucket_lengths(dataset)[:-1]) == pytest.approx(min(map(cost, choices)))


def test_few_steps_are_not_worth_many_lengths() -> None:
    dataset = make_dataset(list(range(1, 129)) * 4)
    assert len(bucket_lengths(dataset, steps=20)) == 1
    assert len(bucket_lengths(dataset)) == 8


def test_grouping_by_length_wastes_less() -> None:
    rng = np.random.default_rng(0)
    dataset = make_dataset(np.minimum(rng.geometric(0.08, 4000), 128).tolist())

    def padded(batching) -> int:
        iterator = train_iterator(
            dataset, batch_size=32, seed=0, batching=batching, epochs=1, lengths=bucket_lengths(dataset)
        )
        return sum(batch["input_ids"].size for batch in iterator)

    assert 2 * padded("bucketed") < padded("padded")


def test_epochs_and_seeds_differ() -> None:
    dataset = make_dataset([5] * 64)

    def order(seed: int, epoch: int) -> list[int]:
        plan = TrainPlan(dataset, batch_size=8, seed=seed, window=4, lengths=(8,), steps=99)
        return np.concatenate([plan.rows(epoch * 8 + place) for place in range(8)]).tolist()

    orders = [order(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 16  # seed 1 does not begin with seed 0's second epoch either
    assert orders[1] == order(0, 1)


def test_batches_are_not_taken_in_the_order_of_length() -> None:
    dataset = make_dataset(list(range(1, 257)))
    iterator = train_iterator(dataset, batch_size=4, seed=0, epochs=1)
    longest = [int(batch["attention_mask"].sum(1).max()) for batch in iterator]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.4


def test_large_data_sets_use_the_other_permutation() -> None:
    """Beyond 2¹⁶ rows the permutation is asked for by position instead of sorted."""
    dataset = make_dataset([1] * (2**16 + 3))
    plan = TrainPlan(dataset, batch_size=2**14, seed=5, window=2, lengths=(8,), steps=10)
    rows = np.concatenate([plan.rows(place) for place in range(5)])
    assert np.array_equal(np.sort(rows), np.arange(2**16 + 3))
    assert not np.array_equal(rows[: 2**14], np.sort(rows[: 2**14]))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_resume_anywhere_gives_the_same_batches(data) -> None:
    dataset = make_dataset(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=60)))
    arguments = {
        "batch_size": data.draw(st.integers(1, 9)),
        "seed": data.draw(st.integers(0, 99)),
        "batching": data.draw(st.sampled_from(["padded", "bucketed"])),
        "shuffle_window": data.draw(st.integers(1, 5)),
        "epochs": data.draw(st.floats(0.1, 3.5)),
    }
    whole = list(train_iterator(dataset, **arguments))
    stop = data.draw(st.integers(0, len(whole)))
    first = train_iterator(dataset, **arguments)
    for _ in range(stop):
        next(first)
    state = first.get_state()
    assert len(str(state)) < 100
    second = train_iterator(dataset, **arguments)
    for _ in range(data.draw(st.integers(0, min(3, len(whole))))):
        next(second)  # read ahead of, before the state is set
    second.set_state(state)
    rest = list(second)
    assert len(rest) == len(whole) - stop
    for expected, batch in zip(whole[stop:], rest, strict=True):
        assert expected.keys() == batch.keys()
        assert all(np.array_equal(expected[name], batch[name]) for name in expected)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(1, None, 4), (0.5, None, 2), (2.1, None, 9), (0.01, None, 1), (None, 11, 11)]
)
def test_number_of_batches(epochs: float | None, steps: int | None, expected: int) -> None:
    dataset = make_dataset([3] * 100)
    assert total_steps(100, 30, epochs=epochs, steps=steps) == expected
    assert len(list(train_iterator(dataset, batch_size=30, seed=0, epochs=epochs, steps=steps))) == expected


def test_epochs_are_not_rounded_up_by_floating_point() -> None:
    assert total_steps(300, 10, epochs=0.1) == 3  # 0.1 · 30 = 3.0000000000000004
    with pytest.raises(ValueError, match="exactly one"):
        total_steps(10, 1)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 64))
def test_evaluation_sees_every_example_once(lengths: list[int], batch_size: int) -> None:
    dataset = make_dataset(lengths, tokenizers=2)
    batches = eval_batches(dataset, batch_size=batch_size)
    assert len(batches) == steps_per_epoch(len(lengths), batch_size)
    seen = np.concatenate([_real(batch) for batch in batches])
    assert sorted(seen) == list(range(len(lengths)))
    assert (np.diff(dataset.lengths[seen]) <= 0).all()
    assert all((batch["example_id"] >= 0).all() for batch in batches[:-1])
    assert len({batch["input_ids"].shape[1] for batch in batches}) <= 8
    _check_batch(batches[random.randrange(len(batches))], dataset, batch_size)
    with pytest.raises(IndexError):
        batches[len(batches)]
