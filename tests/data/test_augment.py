"""Variants of the training text: what may change, how often, and what never does."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdistill.config.data_schema import AugmentConfig
from jaxdistill.data import Rows, augment

WORDS = [f"w{index}" for index in range(50)]


def rows_of(*columns: list[str]) -> Rows:
    return Rows(columns, [0] * len(columns[0]), np.arange(2, 2 + len(columns[0])), "made", unit="line")


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    return rows_of([" ".join(rng.choice(WORDS, 20)) for _ in range(300)])


def test_words_are_masked_and_replaced_as_often_as_asked(rows: Rows) -> None:
    made = augment(rows, AugmentConfig(copies=2, mask=0.1, replace=0.2, ngram=0), mask_token="[MASK]")
    assert made.labels is None
    assert len(made) == 600
    masked = replaced = 0
    for text, number in zip(made.texts[0], made.row_numbers, strict=True):
        before, after = rows.texts[0][number - 2].split(), text.split()
        assert len(before) == len(after)
        masked += after.count("[MASK]")
        replaced += sum(a not in (b, "[MASK]") for a, b in zip(after, before, strict=True))
        assert set(after) <= {*WORDS, "[MASK]"}
    assert masked / 12000 == pytest.approx(0.1, abs=0.015)
    assert replaced / 12000 == pytest.approx(0.2 * 49 / 50, abs=0.02)


def test_pieces_are_one_to_five_consecutive_words(rows: Rows) -> None:
    made = augment(rows, AugmentConfig(mask=0, replace=0, ngram=1), mask_token=None)
    sizes = {len(text.split()) for text in made.texts[0]}
    assert sizes == {1, 2, 3, 4, 5}
    for text, number in zip(made.texts[0], made.row_numbers, strict=True):
        assert f" {text} " in f" {rows.texts[0][number - 2]} "


def test_no_variant_comes_twice_or_is_a_row_itself() -> None:
    rows = rows_of(["a b", "b a", "a", "single"])
    made = augment(rows, AugmentConfig(copies=50, replace=0.5), mask_token="[MASK]")
    texts = made.texts[0]
    assert len(set(texts)) == len(texts) > 5
    assert not {"a b", "b a", "a", "single"} & set(texts)
    assert set(made.row_numbers) == {2, 3}  # one word cannot vary


def test_the_same_variants_every_time_and_others_for_another_seed(rows: Rows) -> None:
    first, again, other = (augment(rows, AugmentConfig(seed=seed), mask_token="[MASK]").texts[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_pairs_vary_in_both_texts() -> None:
    rows = rows_of(["a b c d"] * 2, ["x y z"] * 2)
    made = augment(rows, AugmentConfig(copies=40, mask=0.3, replace=0.3, ngram=0), mask_token="#")
    assert {word for text in made.texts[0] for word in text.split()} == {"a", "b", "c", "d", "#"}
    assert {word for text in made.texts[1] for word in text.split()} == {"x", "y", "z", "#"}


def test_masking_needs_a_mask_token(rows: Rows) -> None:
    with pytest.raises(ValueError, match="no mask token"):
        augment(rows, AugmentConfig(), mask_token=None)
