"""Every token of every document stands exactly once in the rows, with its position, its segment and its label."""

from __future__ import annotations

from pathlib import Path

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_text import (
    NO_LABEL,
    documents_of,
    made_texts,
    open_one,
    pieces_of,
    reference_rows,
    row_of,
    rows_of,
    shifted,
    tokens_of,
    write_jsonl,
)

from jaxdistill.data import Tokenizer
from jaxdistill.data.text import packing as packings

PACKINGS = ("concat", "first_fit", "none")
LENGTHS = [3, 40, 1, 7, 15, 16, 17, 2, 2, 33, 5, 9, 1, 1, 30] * 6


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=60).filter(any),
    length=st.integers(3, 12),
    packing=st.sampled_from(PACKINGS),
    block=st.integers(1, 7),
)
@settings(deadline=None, max_examples=60)
def test_rows_are_those_of_a_plain_packing(lengths: list[int], length: int, packing, block: int) -> None:
    pieces = [([100 * place + i for i in range(size)], list(range(size))) for place, size in enumerate(lengths)]
    made = []
    for start in range(0, len(pieces), block):
        part = pieces[start : start + block]
        tokens = np.asarray([pair for ids, labels in part for pair in zip(ids, labels, strict=True)], np.int32)
        offsets = np.cumsum([0, *(len(ids) for ids, _ in part)])
        made.append({"tokens": tokens.reshape(-1, 2), "offsets": offsets})
    blocks = grain.MapDataset.source(made).to_iter_dataset(grain.ReadOptions(0, 0))
    rows = packings.pack(blocks, packing=packing, length=length, seed=None)
    batches = rows.batch(3, batch_fn=packings.Batch(3, 0)).map_with_index(packings.Number(0, 1))
    expected = reference_rows(packing, [piece for piece in pieces if piece[0]], length)
    assert rows_of(batches) == expected
    counted = packings.count_rows(np.asarray(lengths), packing=packing, length=length, block=block)
    assert counted == len(expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_evaluation_holds_all_documents_in_order(tmp_path: Path, cache: Path, ends: Tokenizer, packing: str) -> None:
    texts = made_texts(LENGTHS)
    split = open_one(write_jsonl(tmp_path / "a.jsonl", texts), ends, cache, packing=packing)
    expected = reference_rows(packing, [shifted(tokens_of(text)) for text in texts], 16)
    batches = split.eval_batches(batch_size=7)
    for _ in range(2):
        assert rows_of(batches) == expected
    assert len(batches) == len(list(batches)) == -(-len(expected) // 7)
    numbers = np.concatenate([batch["example_id"] for batch in batches])
    assert numbers.tolist() == [*range(len(expected)), *[-1] * (-len(expected) % 7)]
    for batch in batches:
        assert all(array.dtype == np.int32 for array in batch.values())
        assert {array.shape for array in batch.values()} == {(7, 16), (7,)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
def test_training_sees_each_document_once_an_epoch(
    tmp_path: Path, cache: Path, ends: Tokenizer, packing: str, streaming: bool
) -> None:
    texts = made_texts(LENGTHS)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    split = open_one(path, ends, cache, packing=packing, streaming=streaming, repeat=False, shuffle_window=20)
    counted = open_one(path, ends, cache, packing=packing).rows_per_epoch(seed=3)
    steps = -(-counted // 4)
    if streaming and packing == "first_fit":  # another order makes other rows
        steps -= 1
    batches = list(split.train_iterator(batch_size=4, seed=3, steps=steps))
    rows = rows_of(batches)
    documents = [tokens_of(text) for text in texts]
    assert [number for batch in batches for number in batch["example_id"] if number >= 0] == list(range(len(rows)))
    if packing == "concat":
        assert documents_of(rows) == sorted(documents)
        assert rows != reference_rows(packing, [shifted(ids) for ids in documents], 16)
    elif not streaming:
        expected = pieces_of(reference_rows(packing, [shifted(ids) for ids in documents], 16))
        assert sorted(pieces_of(rows)) == sorted(expected)
    for row in rows:
        for place, (segment, label) in enumerate(zip(row["segment_ids"], row["labels"], strict=True)):
            if label != NO_LABEL and place + 1 < 16 and row["segment_ids"][place + 1] == segment:
                assert label == row["input_ids"][place + 1]


def test_epochs_come_in_another_order_and_seeds_too(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    texts = made_texts([6] * 40)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    for streaming in (False, True):
        split = open_one(path, ends, cache, length=7, streaming=streaming, shuffle_window=40)
        orders = [
            [tuple(row["input_ids"]) for row in rows_of(split.train_iterator(batch_size=40, seed=seed, steps=2))]
            for seed in (0, 0, 1)
        ]
        assert orders[0] == orders[1]
        epochs = [orders[0][:40], orders[0][40:], orders[2][:40], orders[2][40:]]
        assert all(sorted(epoch) == sorted(map(tuple, map(tokens_of, texts))) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_padding_is_the_tokenizers_own(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    split = open_one(write_jsonl(tmp_path / "a.jsonl", ["w5"]), ends, cache, length=4)
    (batch,) = split.eval_batches(batch_size=2)
    assert rows_of([batch]) == [row_of([([9, 1], [1, NO_LABEL])], 4)]
    assert batch["example_id"].tolist() == [0, -1]
    filler = split.filler_batch(batch_size=2)
    assert rows_of([filler]) == []
    assert {name: (array.shape, array.dtype) for name, array in filler.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
