"""A trained model for extractive question answering applied to questions with contexts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import data
from jaxdistill.data.questions import QuestionRows
from jaxdistill.data.rows import bad_rows_error
from jaxdistill.data.sources import BadRowError, check_text
from jaxdistill.data.windows import SpanDataset, tokenize_questions
from jaxdistill.inference.encoder import load_encoder
from jaxdistill.train.answers import AnswerConfig, FoundAnswer, best_answers
from jaxdistill.train.evaluate_positions import evaluate_spans, span_logits
from jaxdistill.typing import Float


class QuestionAnswerer:
    """A model directory or hub id, its tokenizer and a compiled forward pass."""

    BATCH_SIZE = 64

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        batch_size: int = BATCH_SIZE,
        max_length: int | None = None,
        doc_stride: int | None = None,
    ) -> None:
        """Load everything.

        Args:
          source: Hugging Face directory or hub id.
          revision: branch, tag or commit of a hub id.
          batch_size: most windows in one forward pass.
          max_length: most tokens of a window (default and upper bound: the model's positions).
          doc_stride: tokens that windows of one context share (default: 128, or a third of a shorter window).

        Raises:
          ModelError: it does not answer questions, or has a tokenizer that does not belong to it.
          ExternalError: the hub cannot be reached or does not know the id.
        """
        self.encoder = load_encoder(
            source, task="question_answering", head="head for answers", revision=revision, max_length=max_length
        )
        self.source, self.model, self.params = self.encoder.source, self.encoder.model, self.encoder.params
        self.tokenizer = self.encoder.tokenizer
        self.batch_size = batch_size
        self.doc_stride = min(128, self.encoder.max_length // 3) if doc_stride is None else doc_stride

    def dataset(self, rows: QuestionRows) -> SpanDataset:
        """The rows as windows, which are not kept on disk.

        Raises:
          DataError: a question that leaves no room for its context.
        """
        length = self.encoder.max_length
        return tokenize_questions(rows, self.tokenizer, max_length=length, doc_stride=self.doc_stride, cache=False)

    def logits(self, dataset: SpanDataset) -> Float[np.ndarray, "W 2 S"]:
        """Of starts and ends in every window."""
        batches = self.encoder.batches(dataset.tokens, batch_size=self.batch_size)
        return span_logits(self.model, self.params, dataset, batches)

    def predict(self, rows: QuestionRows, config: AnswerConfig) -> list[FoundAnswer]:
        """The best answer to every question; errors as `dataset`."""
        if not len(rows):
            return []
        dataset = self.dataset(rows)
        return best_answers(self.logits(dataset), dataset, config)


def evaluate_answering(
    answerer: QuestionAnswerer, rows: QuestionRows, config: AnswerConfig, *, teacher: QuestionAnswerer | None = None
) -> dict[str, Any]:
    """How good answers are, and how close to a teacher's.

    Args:
      answerer: the model.
      rows: questions with their answers.
      config: how answers are chosen.
      teacher: a model that reads the same tokens.

    Returns:
      {"f1", "exact_match", "loss"}, with a teacher also "kl", "agreement", "teacher_f1" and "retention" (of F1).

    Raises:
      ModelError: a teacher with another vocabulary.
    """
    dataset = answerer.dataset(rows)
    logits = answerer.logits(dataset)
    if teacher is None:
        return evaluate_spans(logits, None, dataset, config)
    data.check_same_tokens(answerer.tokenizer, teacher.tokenizer)
    batches = answerer.encoder.batches(dataset.tokens, batch_size=answerer.batch_size)
    theirs = span_logits(teacher.model, teacher.params, dataset, batches)
    metrics = evaluate_spans(logits, theirs, dataset, config)
    metrics["teacher_f1"] = evaluate_spans(theirs, None, dataset, config)["f1"]
    if metrics["teacher_f1"]:
        metrics["retention"] = metrics["f1"] / metrics["teacher_f1"]
    return metrics


def asked(lines: Sequence[tuple[int, str]], *, source: str, unit: str) -> QuestionRows:
    """Lines with their numbers, each a JSON object with question, context and perhaps id, as rows.

    Raises:
      DataError: a line that is none.
    """
    questions, contexts, ids = [], [], []
    problems: list[tuple[int, str]] = []
    for number, line in lines:
        try:
            question, context, own = _asked(line)
        except BadRowError as reason:
            problems.append((number, str(reason)))
            continue
        questions.append(question)
        contexts.append(context)
        ids.append(str(number if own is None else own))
    if problems:
        advice = 'write one JSON object a line: {"question": "...", "context": "..."}'
        raise bad_rows_error(source, unit, problems, len(lines), advice)
    numbers = np.asarray([number for number, _ in lines], np.int64)
    return QuestionRows(questions, contexts, [()] * len(questions), ids, numbers, source, unit=unit)


def _asked(line: str) -> tuple[str, str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRowError("not JSON") from None
    if not isinstance(value, dict):
        raise BadRowError("no JSON object")
    return check_text(value.get("question"), "question"), check_text(value.get("context"), "context"), value.get("id")
