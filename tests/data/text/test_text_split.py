"""Splits: held-out shares, processes that divide the documents, epochs, and data that is too little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_text import documents_of, made_texts, open_one, pieces_of, rows_of, tokens_of, write_jsonl

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data import Tokenizer
from jaxdistill.data.text import TextSplit, open_split
from jaxdistill.errors import ConfigError, DataError

PACKINGS = ("concat", "first_fit", "none")
TEXTS = made_texts([4, 9, 1, 30, 6, 2, 2, 13] * 12)


def _documents(split: TextSplit) -> list[list[int]]:
    return documents_of(rows_of(split.eval_batches(batch_size=4)))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_held_out_share_is_no_part_of_train(tmp_path: Path, cache: Path, ends: Tokenizer, streaming: bool) -> None:
    train = SourceConfig(path=str(write_jsonl(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:40]])))
    data = DataConfig(task="causal_lm", train=train, validation_share=0.2, streaming=streaming)
    splits = [open_split(data, name, ends, sequence_length=16, cache_dir=cache) for name in ("train", "validation")]
    assert splits[0] is not None
    assert splits[1] is not None
    kept, held_out = (_documents(split) for split in splits)
    assert not {tuple(ids) for ids in kept} & {tuple(ids) for ids in held_out}
    assert sorted(kept + held_out) == sorted(tokens_of(text) for text in [*TEXTS, *TEXTS[:40]])
    assert 0.05 < len(held_out) / len(TEXTS) < 0.4
    assert splits[0].fingerprint != splits[1].fingerprint
    assert open_split(data, "test", ends, sequence_length=16, cache_dir=cache) is None
    steps = splits[0].train_iterator(batch_size=4, seed=0, steps=30)
    seen = {tuple(ids) for ids, _ in pieces_of(rows_of(steps))}
    assert seen
    assert not seen & {tuple(ids) for ids in held_out if len(ids) > 1}


def test_a_validation_file_leaves_train_whole(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    train, validation = (write_jsonl(tmp_path / f"{name}.jsonl", TEXTS[:9]) for name in "ab")
    data = DataConfig(
        task="causal_lm", train=SourceConfig(path=str(train)), validation=SourceConfig(path=str(validation))
    )
    splits = [open_split(data, name, ends, sequence_length=16, cache_dir=cache) for name in ("train", "validation")]
    assert all(split and len(_documents(split)) == 9 for split in splits)


@pytest.mark.parametrize("streaming", [False, True])
def test_one_document_cannot_be_split(tmp_path: Path, cache: Path, ends: Tokenizer, streaming: bool) -> None:
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3\n")
    source = SourceConfig(path=str(tmp_path / "a.txt"))
    data = DataConfig(task="causal_lm", train=source, sample_by="document", streaming=streaming)
    with pytest.raises(DataError, match=r"leaves none for validation|no document that is held out") as error:
        open_split(data, "validation", ends, sequence_length=16, cache_dir=cache)
    assert "validation_share" in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_divide_the_documents(
    tmp_path: Path, cache: Path, ends: Tokenizer, packing: str, streaming: bool, count: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    split = open_one(path, ends, cache, packing=packing, streaming=streaming, repeat=False, shuffle_window=10)
    parts = [_all_there_is(split, count=count, index=index) for index in range(count)]
    assert all(batch["input_ids"].shape == (8 // count, 16) for part in parts for batch in part)
    rows = [row for part in parts for row in rows_of(part)]
    assert sorted(token for ids, _ in pieces_of(rows) for token in ids if token != 1) == sorted(
        token for text in TEXTS for token in tokens_of(text) if token != 1
    )
    numbers = [number for part in parts for batch in part for number in batch["example_id"] if number >= 0]
    assert len(set(numbers)) == len(numbers) == len(rows)
    for step, batches in enumerate(zip(*parts, strict=False)):
        found = np.concatenate([batch["example_id"] for batch in batches])
        assert all(number in (-1, step * 8 + place) for place, number in enumerate(found))


def _all_there_is(split: TextSplit, *, count: int, index: int) -> list[dict[str, np.ndarray]]:
    """Every batch of a process until its data is used up."""
    batches = []

    def read(steps: int) -> None:
        batches.clear()
        iterator = split.train_iterator(batch_size=8, seed=0, steps=steps, process_index=index, process_count=count)
        batches.extend(iterator)

    with pytest.raises(DataError) as error:
        read(1000)
    read(int(str(error.value).split("train.steps=")[1].split(",")[0].split()[0]))
    return batches


def test_one_process_reads_what_several_do(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    """The documents of the processes are every so manieth of the one order."""
    split = open_one(write_jsonl(tmp_path / "a.jsonl", TEXTS), ends, cache, packing="none", length=40)

    def order(index: int, count: int) -> list[tuple[int, ...]]:
        iterator = split.train_iterator(
            batch_size=4 * count, seed=5, steps=20, process_index=index, process_count=count
        )
        return [tuple(row["input_ids"]) for row in rows_of(iterator)]

    whole = order(0, 1)
    for index in range(2):
        assert order(index, 2)[:40] == whole[index::2][:40]


def test_epochs_are_counted_by_rows(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    tokens = sum(len(tokens_of(text)) for text in TEXTS)
    split = open_one(path, ends, cache)
    assert split.describe() == {"documents": len(TEXTS), "skipped": 0, "tokens": None}
    assert split.rows_per_epoch() == -(-tokens // 16)
    assert split.describe()["tokens"] == tokens
    for packing in PACKINGS:
        # A second time they come from the disk.
        for _ in range(2):
            split = open_one(path, ends, cache, packing=packing, repeat=False)
            rows = split.rows_per_epoch(seed=7)
            assert len(rows_of(split.train_iterator(batch_size=1, seed=7, steps=rows))) == rows
    with pytest.raises(ConfigError, match=r"train\.steps"):
        open_one(path, ends, cache, streaming=True).rows_per_epoch()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("packing", PACKINGS)
def test_too_little_data_is_found_before_training(
    tmp_path: Path, cache: Path, ends: Tokenizer, packing: str, count: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    split = open_one(path, ends, cache, packing=packing, repeat=False)
    with pytest.raises(DataError, match="enough for") as error:
        split.train_iterator(batch_size=8, seed=0, steps=1000, process_index=0, process_count=count)
    steps = int(str(error.value).split("train.steps=")[1].split(",")[0])
    split.check_steps(batch_size=8, seed=0, steps=steps, process_count=count)
    with pytest.raises(DataError, match="enough for"):
        split.check_steps(batch_size=8, seed=0, steps=steps + 1, process_count=count)
    assert f"enough for {steps} steps, but the run has 1000" in str(error.value)
    parts = [
        list(split.train_iterator(batch_size=8, seed=0, steps=steps, process_index=index, process_count=count))
        for index in range(count)
    ]
    assert all(len(part) == steps for part in parts)
    assert any((part[-1]["example_id"] >= 0).any() for part in parts)
    again = open_one(path, ends, cache, packing=packing)
    assert len(list(again.train_iterator(batch_size=8, seed=0, steps=steps + 50))) == steps + 50


def test_a_stream_runs_dry_at_the_step_where_it_does(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    rows = open_one(path, ends, cache).rows_per_epoch()
    split = open_one(path, ends, cache, streaming=True, repeat=False)
    iterator = split.train_iterator(batch_size=10, seed=0, steps=1000)
    steps = -(-rows // 10)
    for _ in range(steps):
        next(iterator)
    with pytest.raises(DataError, match=f"used up after {steps} steps of 1000; set data.repeat=true or train.steps"):
        next(iterator)


def test_empty_shards_are_refused(tmp_path: Path, cache: Path, ends: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:3])
    split = open_one(path, ends, cache)
    with pytest.raises(DataError, match="3 documents cannot be divided among 4 processes"):
        split.train_iterator(batch_size=8, seed=0, steps=2, process_index=0, process_count=4)
    streamed = open_one(path, ends, cache, streaming=True)
    streamed.train_iterator(batch_size=8, seed=0, steps=2, process_index=2, process_count=4)
    with pytest.raises(DataError, match="no document for process 3 of 4"):
        streamed.train_iterator(batch_size=8, seed=0, steps=2, process_index=3, process_count=4)
    with pytest.raises(DataError, match="batch size 9 is not a multiple of the 4 processes"):
        split.train_iterator(batch_size=9, seed=0, steps=2, process_index=0, process_count=4)


def test_evaluation_is_the_same_in_every_process(
    tmp_path: Path, cache: Path, ends: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    split = open_one(write_jsonl(tmp_path / "a.jsonl", TEXTS), ends, cache)
    one = list(split.eval_batches(batch_size=4))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    other = list(split.eval_batches(batch_size=4))
    assert len(one) == len(other)
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def test_fingerprints_tell_what_decides_the_rows(
    tmp_path: Path, cache: Path, ends: Tokenizer, begins: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    same = write_jsonl(tmp_path / "copy.jsonl", TEXTS)
    other = write_jsonl(tmp_path / "other.jsonl", TEXTS[1:])
    base = open_one(path, ends, cache).fingerprint
    assert open_one(same, ends, cache).fingerprint == base
    assert open_one(path, ends, cache, workers=3).fingerprint == base
    changed = [
        open_one(other, ends, cache),
        open_one(path, begins, cache),
        open_one(path, ends, cache, length=17),
        open_one(path, ends, cache, packing="first_fit"),
        open_one(path, ends, cache, streaming=True),
    ]
    fingerprints = {base, *(split.fingerprint for split in changed)}
    assert len(fingerprints) == 6
