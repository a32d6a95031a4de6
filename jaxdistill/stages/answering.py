"""Extractive question answering as a chain's task: questions, contexts in windows, measured by the answers' texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdistill import data
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.data.questions import QuestionRows, load_questions
from jaxdistill.data.windows import SpanDataset, tokenize_questions
from jaxdistill.stages.inputs import read_splits
from jaxdistill.stages.loading import Loading
from jaxdistill.train.answers import AnswerConfig
from jaxdistill.train.evaluate_positions import evaluate_spans, span_logits
from jaxdistill.typing import Params


@dataclass(frozen=True)
class QuestionCorpus:
    """The questions of every split; their positions have no names."""

    splits: dict[str, QuestionRows]
    labels: None = None


@dataclass(frozen=True)
class Answering:
    """What question answering reads and measures."""

    task: str = "question_answering"

    def read(self, config: DataConfig, loading: Loading) -> QuestionCorpus:
        """Questions of every split; a share of train is held out by hash of the contexts where there is no other."""
        return QuestionCorpus(read_splits(config, load_questions))

    def tokenize(
        self,
        corpus: QuestionCorpus,
        split: str,
        tokenizer: data.Tokenizer,
        config: DataConfig,
        *,
        max_length: int,
        truncate: bool,
    ) -> SpanDataset:
        """Questions as windows."""
        return tokenize_questions(corpus.splits[split], tokenizer, max_length=max_length, doc_stride=config.doc_stride)

    def logits(self, model: Any, params: Params, dataset: SpanDataset, batches: Any, mesh: Any) -> np.ndarray:
        """Starts and ends of every window."""
        return span_logits(model, params, dataset, batches, mesh)

    def measure(
        self,
        student: np.ndarray,
        teacher: np.ndarray | None,
        dataset: SpanDataset,
        corpus: QuestionCorpus,
        config: DataConfig,
    ) -> dict[str, float]:
        """Exact match and F1 of answers, and how close to the teacher."""
        threshold = config.null_threshold
        if threshold is None and corpus.splits["train"].unanswerable:
            threshold = 0.0
        chosen = AnswerConfig(config.n_best, config.max_answer_length, threshold)
        return evaluate_spans(student, teacher, dataset, chosen)
