"""SQuAD's nested file and flat rows, and questions that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data.questions import load_questions
from jaxdistill.errors import DataError

CONTEXT = "The plot was very dull, and the film was not good."
GOOD = {"id": "q1", "question": "What was the plot?", "answers": [{"text": "very dull", "answer_start": 13}]}
NONE = {"id": "q2", "question": "Who was good?", "answers": [], "is_impossible": True}


def nested(*questions: Any, **paragraph: Any) -> dict[str, Any]:
    return {
        "version": "2.0",
        "data": [{"title": "T", "paragraphs": [{"context": CONTEXT, "qas": questions} | paragraph]}],
    }


def load(path: Path, content: Any, **keys: Any):
    lines = "\n".join(map(json.dumps, content)) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(lines, encoding="utf-8")
    return load_questions(DataConfig(task="question_answering", **keys), SourceConfig(path=str(path)))


def test_the_published_form(tmp_path: Path) -> None:
    rows = load(tmp_path / "train.json", nested(GOOD, NONE))
    assert rows.questions == ["What was the plot?", "Who was good?"]
    assert rows.contexts == [CONTEXT] * 2
    assert rows.answers == [(("very dull", 13),), ()]
    assert (rows.ids, rows.unit, rows.unanswerable) == (["q1", "q2"], "question", True)
    assert rows.row_numbers.tolist() == [1, 2]


@pytest.mark.parametrize(
    "answers",
    [{"text": ["very dull", "dull"], "answer_start": [13, 18]}, [{"text": "very dull", "answer_start": 13}]],
)
def test_flat_rows(tmp_path: Path, answers: Any) -> None:
    row = {"q": "What was the plot?", "passage": CONTEXT, "answers": answers}
    rows = load(tmp_path / "train.jsonl", [row], question="q", context="passage")
    assert rows.answers[0][0] == ("very dull", 13)
    assert (rows.ids, rows.unanswerable) == (["1"], False)
    with pytest.raises(DataError, match=r"no column 'question'.*data\.question, data\.context"):
        load(tmp_path / "train.jsonl", [row])


def test_a_parquet_file_of_the_hub(tmp_path: Path) -> None:
    import datasets

    row = {"id": "a", "question": "Q?", "context": CONTEXT, "answers": {"text": ["dull"], "answer_start": [18]}}
    datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "t.parquet"))
    config = DataConfig(task="question_answering")
    rows = load_questions(config, SourceConfig(path=str(tmp_path / "t.parquet")))
    assert (rows.ids, rows.answers) == (["a"], [(("dull", 18),)])


def answered(text: Any, start: Any) -> dict[str, Any]:
    return GOOD | {"answers": [{"text": text, "answer_start": start}]}


BAD = [
    (answered("very dull", 14), "'very dull' is not in the context at 14, where there is 'ery dull,'; it is at 13"),
    (answered("clever", 4), "'clever' is not in the context at 4"),
    (answered("dull", -5), "'dull' is not in the context at -5"),
    (answered("dull", 500), "'dull' is not in the context at 500, where there is nothing"),
    (answered("", 0), "an answer without text"),
    (answered("dull", "18"), "'dull' has no whole number as answer_start"),
    (GOOD | {"question": "  "}, "empty text \\(column 'question'\\)"),
    (GOOD | {"question": None}, "missing text \\(column 'question'\\)"),
    (GOOD | {"answers": None}, "missing answers"),
    (GOOD | {"answers": {"text": ["dull"], "answer_start": []}}, "1 answers with 0 starts"),
    ("no object", "article 1, paragraph 1 has a question that is no object"),
]


@pytest.mark.parametrize(("question", "reason"), BAD)
def test_bad_questions_are_errors_or_skipped(tmp_path: Path, question: Any, reason: str) -> None:
    content = nested(GOOD, question)
    with pytest.raises(DataError, match=rf"t\.json: 1 bad row of 2 \(question 2: .*{reason}"):
        load(tmp_path / "t.json", content)
    rows = load(tmp_path / "t.json", content, on_bad_row="skip")
    assert (rows.ids, rows.skipped) == (["q1"], 1)


def test_a_missing_context_is_every_question_of_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 bad rows of 2 .question 1: missing text .column 'context'."):
        load(tmp_path / "t.json", nested(GOOD, NONE, context=None))
