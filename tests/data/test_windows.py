"""Windows and their labels, against transformers' own overflowing tokens and against answers read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxdistill.data import Tokenizer, eval_batches
from jaxdistill.data.questions import Answer, QuestionRows
from jaxdistill.data.windows import tokenize_questions
from jaxdistill.errors import DataError

LONG = "the film was very dull, not fun. a great plot and it was good film, the unwatchable plot is not bad."
QUESTIONS = [
    ("is it good", LONG, (Answer("great plot", LONG.index("great plot")),)),
    ("is it", "the film is good", (Answer("good", 12),)),
    ("was it  fun", LONG, ()),
    ("unwatchable", LONG, (Answer("unwatchable", LONG.index("unwatch")), Answer("dull", 18))),
]


def rows_of(questions) -> QuestionRows:
    columns = [list(column) for column in zip(*questions, strict=True)]
    numbers = np.arange(1, len(questions) + 1, dtype=np.int64)
    return QuestionRows(*columns, [str(n) for n in numbers], numbers, "made.json")


@pytest.fixture(scope="module")
def pairs(tokenizer_dir: Path, tmp_path_factory) -> tuple[Tokenizer, Path]:
    """The small tokenizer, with transformers' BERT defaults for pairs."""
    import transformers

    directory = tmp_path_factory.mktemp("pairs")
    transformers.BertTokenizer(vocab=str(tokenizer_dir / "vocab.txt")).save_pretrained(directory)
    from jaxdistill.data import load_tokenizer

    return load_tokenizer(directory), directory


@pytest.mark.parametrize(
    ("kind", "max_length", "doc_stride"),
    [("bert", 16, 4), ("bert", 12, 0), ("bert", 14, 6), ("bert", 64, 8), ("roberta", 40, 6)],
)
def test_same_windows_as_transformers(pairs, byte_level, tmp_path, kind: str, max_length: int, doc_stride: int) -> None:
    import transformers

    tokenizer, directory = pairs if kind == "bert" else byte_level
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    expected = theirs(
        [question for question, _, _ in QUESTIONS],
        [context for _, context, _ in QUESTIONS],
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    dataset = tokenize_questions(
        rows_of(QUESTIONS), tokenizer, max_length=max_length, doc_stride=doc_stride, cache_dir=tmp_path
    )
    (ragged,) = dataset.tokens.encodings
    assert dataset.question.tolist() == expected["overflow_to_sample_mapping"]
    assert (ragged.types is not None) == (kind == "bert")
    for window, ids in enumerate(expected["input_ids"]):
        part = slice(ragged.offsets[window], ragged.offsets[window + 1])
        assert ragged.ids[part].tolist() == ids
        if ragged.types is not None:
            assert ragged.types[part].tolist() == expected["token_type_ids"][window]
        inside = [sequence == 1 for sequence in expected.sequence_ids(window)]
        offsets = [
            pair if own else (-1, -1) for pair, own in zip(expected["offset_mapping"][window], inside, strict=True)
        ]
        found = zip(dataset.starts[part].tolist(), dataset.ends[part].tolist(), strict=True)
        assert list(found) == [tuple(pair) for pair in offsets]
        # p_mask as transformers' SQuAD features have it: the context and the first token are open
        mask = dataset.tokens.per_token["p_mask"].values[part]
        assert mask.tolist() == [int(not own and place > 0) for place, own in enumerate(inside)]


def test_labels_give_the_answers_back(pairs, tmp_path: Path) -> None:
    """Where a window holds the whole first answer, its tokens are the answer; elsewhere both labels are 0."""
    tokenizer, _ = pairs
    dataset = tokenize_questions(rows_of(QUESTIONS), tokenizer, max_length=16, doc_stride=6, cache_dir=tmp_path)
    offsets = dataset.tokens.encodings[0].offsets
    answered = set()
    for window, (start, end) in enumerate(dataset.tokens.labels):
        question = int(dataset.question[window])
        answers = QUESTIONS[question][2]
        own = dataset.starts[offsets[window] : offsets[window + 1]]
        last = dataset.ends[offsets[window] : offsets[window + 1]].max()
        if start == 0:
            assert end == 0
            held = (
                answers and own[own >= 0].min() <= answers[0].start and last >= answers[0].start + len(answers[0].text)
            )
            assert not held
            continue
        answered.add(question)
        first = dataset.starts[offsets[window] + start]
        text = QUESTIONS[question][1][first : dataset.ends[offsets[window] + end]]
        assert text == answers[0].text
    assert answered == {0, 1, 3}


def test_batches_hold_two_labels_a_window_and_a_mask(pairs, tmp_path: Path) -> None:
    tokenizer, _ = pairs
    dataset = tokenize_questions(rows_of(QUESTIONS[:2]), tokenizer, max_length=64, doc_stride=8, cache_dir=tmp_path)
    (batch,) = eval_batches(dataset.tokens, batch_size=4, lengths=[64])
    assert batch["labels"].shape == (4, 2)
    assert (batch["labels"][2:] == -100).all()
    assert (batch["p_mask"][2:] == 1).all()
    assert (batch["p_mask"][batch["attention_mask"] == 0] == 1).all()


def test_a_question_that_leaves_no_room(pairs, tmp_path: Path) -> None:
    tokenizer, _ = pairs
    rows = rows_of([*QUESTIONS, ("is it good " * 4, LONG, ())])
    with pytest.raises(DataError, match=r"made\.json: 1 bad row of 5 \(row 5: the question leaves 5 of 20 .* share 8"):
        tokenize_questions(rows, tokenizer, max_length=20, doc_stride=8, cache_dir=tmp_path)
