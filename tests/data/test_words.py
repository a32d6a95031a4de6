"""Tags on the first tokens of words, against cases worked out by hand and transformers' own word_ids."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxdistill.data import Tokenizer, eval_batches
from jaxdistill.data.tagged import TaggedRows
from jaxdistill.data.words import WordDataset, tokenize_words
from jaxdistill.errors import DataError

SENTENCES = [
    ["unwatchable", "film", ",", "dull"],  # un ##watch ##able film , dull
    ["great"],
    ["a\u200b", "\u200b", "not-good"],  # the second word is nothing to BERT; the third is three tokens
    ["the", "the", "zebra", "plot"],  # the same word twice is two words
]
TAGS = np.asarray([1, 2, 0, 3, 1, 2, 3, 1, 1, 2, -100, 3], np.int32)


def rows_of(sentences: list[list[str]]) -> TaggedRows:
    numbers = np.arange(1, len(sentences) + 1, dtype=np.int64)
    return TaggedRows([list(words) for words in sentences], None, numbers, "made.txt")


def by_hand(dataset: WordDataset) -> list[list[int]]:
    offsets, labels = dataset.tokens.encodings[0].offsets, dataset.tokens.per_token["labels"].values
    return [labels[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def test_tags_are_on_first_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = tokenize_words(rows_of(SENTENCES), tokenizer, TAGS, cache_dir=tmp_path)
    skip = -100
    assert by_hand(dataset) == [
        [skip, 1, skip, skip, 2, 0, 3, skip],
        [skip, 1, skip],
        [skip, 2, 1, skip, skip, skip],
        [skip, 1, 2, skip, 3, skip],
    ]
    assert dataset.words.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]  # all but the sixth
    assert dataset.offsets.tolist() == [0, 4, 5, 8, 12]
    assert dataset.tags.tolist() == TAGS.tolist()


def test_words_that_are_cut_off_have_no_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = rows_of(SENTENCES)
    with pytest.raises(DataError, match=r"made\.txt: 3 bad rows of 4 \(row 1: 8 tokens.*data\.truncate=true"):
        tokenize_words(rows, tokenizer, TAGS, max_length=4, cache_dir=tmp_path)
    dataset = tokenize_words(rows, tokenizer, TAGS, max_length=4, truncate=True, cache_dir=tmp_path)
    skip = -100
    assert by_hand(dataset) == [[skip, 1, skip, skip], [skip, 1, skip], [skip, 2, 1, skip], [skip, 1, 2, skip]]
    assert dataset.words.tolist() == [0, 4, 5, 7, 8, 9]  # the first word's last token is cut off, its tag is not
    assert dataset.tokens.truncated == 3


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("max_length", [None, 6])
def test_same_words_as_transformers(tokenizer, tokenizer_dir, byte_level, tmp_path, kind, max_length) -> None:
    import transformers

    ours, directory = (tokenizer, tokenizer_dir) if kind == "bert" else byte_level
    prefix = {} if kind == "bert" else {"add_prefix_space": True}
    theirs = transformers.AutoTokenizer.from_pretrained(directory, **prefix)
    sentences = [*SENTENCES, ["The", "film's", "plot"], ["good"] * 9]
    expected = theirs(sentences, is_split_into_words=True, truncation=max_length is not None, max_length=max_length)
    count = sum(map(len, sentences))
    dataset = tokenize_words(
        rows_of(sentences),
        ours,
        np.arange(count, dtype=np.int32),
        max_length=max_length,
        truncate=True,
        cache_dir=tmp_path,
    )
    (ragged,) = dataset.tokens.encodings
    labels = by_hand(dataset)
    start = 0
    for place, words in enumerate(sentences):
        assert ragged.ids[ragged.offsets[place] : ragged.offsets[place + 1]].tolist() == expected["input_ids"][place]
        ids = expected.word_ids(place)
        firsts = [word is not None and word not in ids[:index] for index, word in enumerate(ids)]
        wanted = [start + word if first else -100 for word, first in zip(ids, firsts, strict=True)]
        assert labels[place] == wanted
        start += len(words)


def test_batches_hold_labels_for_every_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = tokenize_words(rows_of(SENTENCES), tokenizer, TAGS, cache_dir=tmp_path)
    (batch,) = eval_batches(dataset.tokens, batch_size=6, lengths=[10])
    assert batch["labels"].shape == batch["input_ids"].shape == (6, 10)
    for row, sentence in enumerate(batch["example_id"]):
        wanted = by_hand(dataset)[sentence] if sentence >= 0 else []
        assert batch["labels"][row].tolist() == wanted + [-100] * (10 - len(wanted))


def test_tokens_come_from_the_cache_and_tags_do_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one = tokenize_words(rows_of(SENTENCES), tokenizer, TAGS, cache_dir=tmp_path)
    entries = list((tmp_path / "tokens").iterdir())
    other = tokenize_words(rows_of(SENTENCES), tokenizer, TAGS[::-1].copy(), cache_dir=tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == entries
    assert one.fingerprint != other.fingerprint
    again = tokenize_words(rows_of(SENTENCES), tokenizer, TAGS, cache_dir=tmp_path)
    assert one.fingerprint == again.fingerprint
