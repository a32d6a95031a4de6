"""Questions about contexts, in SQuAD's form: nested as it is published, or a row for each question; checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data.readers import Record, Table
from jaxdistill.data.sources import (
    BadRowError,
    check_columns,
    check_rows,
    check_text,
    open_table,
    reading,
    source_name,
)

_NESTED = "paragraphs"
_COLUMNS = "data.question, data.context and data.answers say which columns to read"


class Answer(NamedTuple):
    """A part of a context and the character it starts at."""

    text: str
    start: int


@dataclass(frozen=True)
class QuestionRows:
    """Questions as read. answers: those accepted, none for a question that its context does not answer.

    ids: as the source writes them, or the row's number. row_numbers, source, skipped, unit: as of `Rows`.
    """

    questions: list[str]
    contexts: list[str]
    answers: list[tuple[Answer, ...]]
    ids: list[str]
    row_numbers: np.ndarray
    source: str
    skipped: int = 0
    unit: str = "row"

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def texts(self) -> tuple[list[str], ...]:
        """The contexts: what is split off by hash is questions about other texts."""
        return (self.contexts,)

    @property
    def unanswerable(self) -> bool:
        """Whether there are questions without an answer, as in SQuAD 2.0."""
        return not all(self.answers)

    def take(self, indices: Sequence[int] | np.ndarray) -> QuestionRows:
        """The rows at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            questions=[self.questions[index] for index in chosen],
            contexts=[self.contexts[index] for index in chosen],
            answers=[self.answers[index] for index in chosen],
            ids=[self.ids[index] for index in chosen],
            row_numbers=self.row_numbers[chosen],
        )


def load_questions(data: DataConfig, source: SourceConfig, *, base_dir: Path | None = None) -> QuestionRows:
    """Reads and checks the questions of one source.

    Args:
      data: the columns of flat rows, and what to do with bad rows.
      source: a path or a hub id: SQuAD's own nested JSON, or rows with question, context and answers, which are
        {"text": [...], "answer_start": [...]} or a list of {"text", "answer_start"}.
      base_dir: what a relative path is relative to (default: the current directory).

    Returns:
      N ≥ 1 rows; nested ones are counted by question.

    Raises:
      DataError: nothing there, an unusable file, a missing column, or bad rows (with `on_bad_row: error`): missing or
        empty question or context, answers of another form, an answer that is not in the context at its start.
      ExternalError: the hub or the disk cannot be read.
    """
    name = source_name(source)

    def select(found: Sequence[str]) -> tuple[str, ...]:
        if _NESTED in found:
            return (_NESTED,)
        wanted = (data.question, data.context, data.answers)
        return (*check_columns(wanted, found, name, keys=_COLUMNS), *({data.id} & set(found)))

    with reading(name):
        table = _flat(open_table(source, name, base_dir, select), data)
        kept, numbers, skipped = check_rows(table, partial(_checked, data=data), data, source, expected="question")
    questions, contexts, answers, own = (list(column) for column in zip(*kept, strict=True))
    ids = [str(number if id_ is None else id_) for number, id_ in zip(numbers, own, strict=True)]
    return QuestionRows(questions, contexts, answers, ids, numbers, name, skipped, table.unit)


def _checked(record: Mapping[str, Any], *, data: DataConfig) -> tuple[str, str, tuple[Answer, ...], Any]:
    """Question, context, answers and the id, if there is one."""
    question = check_text(record.get(data.question), data.question)
    context = check_text(record.get(data.context), data.context)
    answers = () if record.get("is_impossible") is True else _answers(record.get(data.answers), data.answers, context)
    return question, context, answers, record.get(data.id)


def _answers(value: Any, column: str, context: str) -> tuple[Answer, ...]:
    """What a question's answers are, each where it says it is."""
    form = f'expected {{"text": [...], "answer_start": [...]}} or a list of such pairs (column {column!r})'
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list):
            raise BadRowError(f"answers without lists of text and answer_start; {form}")
        if len(texts) != len(starts):
            raise BadRowError(f"{len(texts)} answers with {len(starts)} starts (column {column!r})")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list):
        if not all(isinstance(item, Mapping) for item in value):
            raise BadRowError(f"an answer that is no object; {form}")
        pairs = [(item.get("text"), item.get("answer_start")) for item in value]
    else:
        raise BadRowError(f"{'missing answers' if value is None else f'answers are a {type(value).__name__}'}; {form}")
    answers = []
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip():
            raise BadRowError(f"an answer without text (column {column!r})")
        if not isinstance(start, int) or isinstance(start, bool):
            raise BadRowError(f"answer {_short(text)} has no whole number as answer_start (column {column!r})")
        if start < 0 or context[start : start + len(text)] != text:
            found = _short(context[start : start + len(text)]) if 0 <= start < len(context) else "nothing"
            elsewhere = context.find(text)
            hint = f"; it is at {elsewhere}" if elsewhere >= 0 else ""
            raise BadRowError(f"answer {_short(text)} is not in the context at {start}, where there is {found}{hint}")
        answers.append(Answer(text, start))
    return tuple(answers)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


# --- the published form ----------------------------------------------------------------------------------------------


def _flat(table: Table, data: DataConfig) -> Table:
    """Questions one by one; those of articles and paragraphs are counted anew."""
    first = next(table.records, None)
    if first is None:
        return table
    together = itertools.chain([first], table.records)
    if not isinstance(first[1], Mapping) or _NESTED not in first[1]:
        return replace(table, records=together)
    return Table("question", enumerate(_nested(together, data), start=1))


def _nested(records: Iterator[Record], data: DataConfig) -> Iterator[Mapping[str, Any] | str]:
    """The questions of all articles, each with its context; what is no article, paragraph or question as what it is."""
    for article, (_, record) in enumerate(records, start=1):
        paragraphs = record.get(_NESTED) if isinstance(record, Mapping) else None
        if not isinstance(paragraphs, list):
            yield f"article {article} has no list of paragraphs"
            continue
        for place, paragraph in enumerate(paragraphs, start=1):
            where = f"article {article}, paragraph {place}"
            questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
            if not isinstance(questions, list):
                yield f"{where} has no list of qas"
                continue
            for question in questions:
                if not isinstance(question, Mapping):
                    yield f"{where} has a question that is no object"
                    continue
                yield {
                    data.context: paragraph.get("context"),
                    data.question: question.get("question"),
                    data.answers: question.get("answers"),
                    data.id: question.get("id"),
                    "is_impossible": question.get("is_impossible"),
                }
