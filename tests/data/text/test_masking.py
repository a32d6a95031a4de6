"""Dynamic masking: its shares, what it never touches, whole words, and what it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pieces import CLS, MASK, PAD, SEP, UNKNOWN, chosen, made_documents, make_pieces, open_masked, unmasked
from made_text import write_jsonl

from jaxdistill.config.data_schema import MaskingConfig
from jaxdistill.data import Tokenizer
from jaxdistill.data.text import TextSplit
from jaxdistill.errors import ConfigError, ModelError

LENGTH, BATCH = 64, 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [*made_documents(400, words=(3, 60)), *made_documents(6, words=(100, 150), seed=1)]


@pytest.fixture(scope="module")
def file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("masked") / "text.jsonl", documents)


def split_of(file: Path, tokenizer: Tokenizer, **settings: Any) -> TextSplit:
    return open_masked(file, tokenizer, file.parent / "cache", length=LENGTH, **settings)


def taken(split: TextSplit, steps: int, *, seed: int = 0, batch_size: int = BATCH) -> list[dict[str, np.ndarray]]:
    iterator = split.train_iterator(batch_size=batch_size, seed=seed, steps=steps, process_index=0, process_count=1)
    batches = list(iterator)
    iterator.close()
    return batches


def gathered(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def within(count: int, of: int, share: float) -> bool:
    """Five standard deviations of a binomial."""
    return abs(count - of * share) < 5 * np.sqrt(of * share * (1 - share)) + 1


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares_of_chosen_and_of_replaced_tokens(file: Path, tokenizer: Tokenizer, whole_words: bool) -> None:
    masking = MaskingConfig(whole_words=whole_words)
    batch = gathered(taken(split_of(file, tokenizer, masking=masking), 60))
    ids, where = unmasked(batch), chosen(batch)
    special = np.isin(ids, [PAD, UNKNOWN, CLS, SEP, MASK])
    assert not (where & special).any()
    assert not (where & (batch["attention_mask"] == 0)).any()
    maskable = (~special).sum()
    # each row's number is its tokens' times 0.15, rounded: far closer than independent draws; words may fit less well
    np.testing.assert_allclose(where.sum() / maskable, 0.15, atol=0.004 if whole_words else 0.001)
    found, there = batch["input_ids"][where], ids[where]
    assert within(int((found == MASK).sum()), where.sum(), 0.8)
    # one in the vocabulary of a token drawn at random is the one that was there
    assert within(int(((found != MASK) & (found != there)).sum()), where.sum(), 0.1 * (1 - 1 / 90))
    drawn = found[(found != MASK) & (found != there)]
    assert set(np.unique(drawn)) <= set(range(5, 95))
    assert len(np.unique(drawn)) > 60
    assert (batch["input_ids"][~where] == ids[~where]).all()
    # every position as often: none of the row's places is preferred
    rates = where[:, 1:40].sum(0) / np.maximum((~special)[:, 1:40].sum(0), 1)
    assert np.abs(rates - 0.15).max() < 0.07


def test_places_are_static_ascending_and_filled_up(file: Path, tokenizer: Tokenizer) -> None:
    split = split_of(file, tokenizer)
    assert split.labels_per_row == 10  # 0.15 of the 62 between the separators
    for batch in taken(split, 5):
        assert batch["masked_positions"].shape == batch["labels"].shape == (BATCH, 10)
        for positions, labels in zip(batch["masked_positions"], batch["labels"], strict=True):
            count = int((labels >= 0).sum())
            assert (np.diff(positions[:count]) > 0).all()
            assert (labels[count:] == -100).all()
            assert (positions[count:] == 0).all()


def test_words_are_chosen_whole(file: Path, tokenizer: Tokenizer, documents: list[str]) -> None:
    split = split_of(file, tokenizer, masking=MaskingConfig(whole_words=True), packing="none")
    encodings = tokenizer.backend.encode_batch(documents)
    rows = gathered(list(split.eval_batches(batch_size=BATCH)))
    real = rows["example_id"] >= 0
    masked = iter(chosen(rows)[real])
    several = 0
    for encoding in encodings:
        words = encoding.word_ids[1:-1]
        for start in range(0, len(words), LENGTH - 2):
            piece, where = words[start : start + LENGTH - 2], next(masked)
            for word in {word for word in piece if word is not None}:
                own = where[1 : len(piece) + 1][[other == word for other in piece]]
                assert own.all() or not own.any()
                several += bool(own.all() and len(own) > 1)
    assert several > 100
    assert next(masked, None) is None


def test_masks_depend_on_the_row_s_number_and_the_seed_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    short = write_jsonl(tmp_path / "short.jsonl", made_documents(50, words=(3, 15)))
    split = open_masked(short, tokenizer, tmp_path, length=LENGTH, packing="none")
    small, large = (gathered(list(split.eval_batches(batch_size=size))) for size in (4, 32))
    for name in small:
        np.testing.assert_array_equal(small[name][:50], large[name][:50])
    padded = open_masked(short, tokenizer, tmp_path, length=LENGTH + 40, packing="none")
    longer = gathered(list(padded.eval_batches(batch_size=4)))
    np.testing.assert_array_equal(chosen(longer)[:50, :LENGTH], chosen(small)[:50])
    np.testing.assert_array_equal(longer["input_ids"][:50, :LENGTH], small["input_ids"][:50])


def test_each_epoch_and_each_seed_has_masks_of_its_own(file: Path, tokenizer: Tokenizer) -> None:
    split = split_of(file, tokenizer, packing="none")
    rows = split.rows_per_epoch()
    batches = gathered(taken(split, 3 * rows // BATCH))
    epochs = [{key: value[start : start + rows] for key, value in batches.items()} for start in (0, rows)]
    texts = [{tuple(text): mask for text, mask in zip(unmasked(part), chosen(part), strict=True)} for part in epochs]
    assert texts[0].keys() == texts[1].keys()
    same = np.mean([np.array_equal(texts[0][text], texts[1][text]) for text in texts[0]])
    assert same < 0.05
    again, other = gathered(taken(split, 2)), gathered(taken(split, 2, seed=1))
    for name in again:
        np.testing.assert_array_equal(again[name], batches[name][: 2 * BATCH])
    assert not np.array_equal(other["labels"], again["labels"])


@pytest.mark.parametrize("packing", ["none", "first_fit"])
def test_pieces_stand_between_separators_and_are_all_there(
    file: Path, tokenizer: Tokenizer, documents: list[str], packing: Any
) -> None:
    split = split_of(file, tokenizer, packing=packing)
    batches = list(split.eval_batches(batch_size=BATCH))
    batch = gathered(batches)
    rows = int((batch["example_id"] >= 0).sum())
    assert packing == "first_fit" or split.rows_per_epoch() == rows  # first-fit's number depends on the order
    assert len(split.eval_batches(batch_size=BATCH)) == len(batches)
    assert ("segment_ids" in batch) == ("positions" in batch) == (packing == "first_fit")
    segments = batch.get("segment_ids", batch["attention_mask"])
    np.testing.assert_array_equal(batch["attention_mask"], segments > 0)
    ids, pieces = unmasked(batch), []
    for row in range(len(ids)):
        for segment in range(1, segments[row].max() + 1):
            own = segments[row] == segment
            pieces.append(tuple(ids[row][own]))
            if "positions" in batch:
                np.testing.assert_array_equal(batch["positions"][row][own], np.arange(own.sum()))
    room = LENGTH - 2
    texts = [encoding.ids[1:-1] for encoding in tokenizer.backend.encode_batch(documents)]
    expected = [(CLS, *text[start : start + room], SEP) for text in texts for start in range(0, len(text), room)]
    assert sorted(pieces) == sorted(expected)
    if packing == "first_fit":
        assert batch["attention_mask"][:rows].mean() > 0.9


@pytest.mark.parametrize("settings", [{}, {"streaming": True}, {"packing": "none"}])
def test_continues_with_the_batches_that_would_have_followed(
    file: Path, tokenizer: Tokenizer, settings: dict[str, Any]
) -> None:
    split = split_of(file, tokenizer, **settings)
    arguments: dict[str, Any] = {"batch_size": 8, "seed": 3, "steps": 40, "process_index": 0, "process_count": 1}
    iterator = split.train_iterator(**arguments)
    for _ in range(23):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    iterator.close()
    resumed = split.train_iterator(**arguments)
    resumed.set_state(state)
    for ours, theirs in zip(resumed, rest, strict=True):
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values)
    resumed.close()


def test_filler_rows_have_nothing_to_find(file: Path, tokenizer: Tokenizer) -> None:
    split = split_of(file, tokenizer)
    filler, batch = split.filler_batch(batch_size=BATCH), taken(split, 1)[0]
    assert {name: (array.shape, array.dtype) for name, array in filler.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    assert (filler["labels"] == -100).all()
    assert not filler["attention_mask"].any()


def test_settings_decide_the_fingerprint(file: Path, tokenizer: Tokenizer) -> None:
    one, other = split_of(file, tokenizer), split_of(file, tokenizer, masking=MaskingConfig(probability=0.2))
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == split_of(file, tokenizer).fingerprint


def test_no_mask_token(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no mask token.*mask_token in its tokenizer_config.json"):
        split_of(file, make_pieces(tmp_path, mask=False))


def test_no_room_between_the_separators(file: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"data.max_length: 2 tokens leave no room between the 2"):
        open_masked(file, tokenizer, file.parent / "cache", length=2)
