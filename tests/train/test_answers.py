"""Answers chosen from logits over windows, and SQuAD's measures, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdistill.data.questions import Answer, QuestionRows
from jaxdistill.data.token_cache import Ragged
from jaxdistill.data.tokenize import TokenizedDataset
from jaxdistill.data.windows import SpanDataset
from jaxdistill.train.answers import (
    AnswerConfig,
    best_answers,
    exact_match,
    normalised,
    squad_scores,
    token_f1,
)

CONTEXT = "ab cd ef gh"
INF = np.inf


@pytest.fixture
def dataset() -> SpanDataset:
    """One question, its four words in two windows that share the second and the third: [CLS] words [SEP]."""
    starts = np.asarray([-1, 0, 3, 6, -1, -1, 3, 6, 9, -1], np.int32)
    ends = np.asarray([-1, 2, 5, 8, -1, -1, 5, 8, 11, -1], np.int32)
    ids = Ragged(np.zeros(10, np.int32), np.asarray([0, 5, 10]), None, 0)
    labels = np.asarray([[1, 2], [0, 0]], np.int32)
    tokens = TokenizedDataset((ids,), labels, np.asarray([5, 5], np.int32), 0, 5, "made")
    rows = QuestionRows(["?"], [CONTEXT], [(Answer("ab cd", 0),)], ["1"], np.asarray([1]), "made")
    return SpanDataset(tokens, rows, np.asarray([0, 0]), starts, ends)


def logits(first, second):
    return np.asarray([first, second], np.float32)


def test_the_best_of_all_windows(dataset: SpanDataset) -> None:
    made = logits(
        [[1, 2, 0, 0, -INF], [1, 0, 3, 0, -INF]],  # ab … cd: 5
        [[0, 0, 0, 4, -INF], [0, 0, 2, 1.5, -INF]],  # gh … gh: 5.5, and gh … ef, which ends before it starts, is 6
    )
    (found,) = best_answers(made, dataset, AnswerConfig())
    assert (found.text, found.start, found.end) == ("gh", 9, 11)
    assert 0 < found.score < 1
    (short,) = best_answers(made[:1].repeat(2, 0), dataset, AnswerConfig(max_answer_length=1))
    assert short.text == "cd"  # 0 + 3 beats ab's 2 + 0


def test_no_answer_is_given_when_it_is_better_by_the_threshold(dataset: SpanDataset) -> None:
    """The least of the windows' own: 2 + 2 in the second; the best answer has 5."""
    made = logits(
        [[4, 2, 0, 0, -INF], [4, 0, 3, 0, -INF]],
        [[2, 0, 0, 0, -INF], [2, 0, 0, 0, -INF]],
    )
    for threshold, text in ((None, "ab cd"), (0.0, "ab cd"), (-0.5, "ab cd"), (-1.5, "")):
        (found,) = best_answers(made, dataset, AnswerConfig(null_threshold=threshold))
        assert found.text == text


def test_the_score_is_a_probability_among_the_best(dataset: SpanDataset) -> None:
    made = logits([[-INF, 1, -INF, -INF, -INF], [-INF, 0, 2, -INF, -INF]], [[-INF] * 5] * 2)
    (found,) = best_answers(made, dataset, AnswerConfig())
    assert found.text == "ab cd"
    assert found.score == pytest.approx(np.exp(3) / (np.exp(3) + np.exp(1)))  # ab cd: 3, ab: 1


def test_nothing_to_choose_from_is_no_answer(dataset: SpanDataset) -> None:
    made = logits([[1, -INF, -INF, -INF, -INF]] * 2, [[1, -INF, -INF, -INF, -INF]] * 2)
    (found,) = best_answers(made, dataset, AnswerConfig())
    assert (found.text, found.score) == ("", 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Plot!", "plot"),
        ("an A-team, the best", "ateam best"),
        ("theatre", "theatre"),
        ("U.S.", "us"),
        ("a the an", ""),
        ("“The” plot", "“ ” plot"),  # only ASCII punctuation is removed, and an article between others still is
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_scores_of_one_answer() -> None:
    assert exact_match("the plot", "Plot.") == 1.0
    assert exact_match("plot", "plots") == 0.0
    # {very, dull, plot} and {dull, film}: one of 3 and of 2 in common
    assert token_f1("very dull plot", "a dull film") == pytest.approx(2 * 1 / 5)
    assert token_f1("dull dull", "dull") == pytest.approx(2 / 3)  # counted as often as both have it
    assert token_f1("", "") == 1.0
    assert token_f1("", "plot") == 0.0


def test_scores_are_the_best_of_those_accepted_averaged() -> None:
    guesses = ["very dull", "", "plot", ""]
    truths = [["dull", "very dull"], [], [], ["film"]]
    assert squad_scores(guesses, truths) == {"exact_match": 0.5, "f1": 0.5}
    scores = squad_scores(["very dull film"], [["dull", "dull film"]])
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(0.8)}
