"""Trained models applied to text: what `predict` and `evaluate` share."""

from jaxdistill.inference.answerer import QuestionAnswerer, asked, evaluate_answering
from jaxdistill.inference.classifier import Classifier, Prediction, evaluate, evaluation_rows, unlabelled_rows
from jaxdistill.inference.encoder import task_of
from jaxdistill.inference.language_model import (
    Continuation,
    LanguageModel,
    MaskedLanguageModel,
    evaluate_on_text,
    evaluation_split,
    is_language_model,
)
from jaxdistill.inference.tagger import Tagged, TokenClassifier, evaluate_tagging, sentences

__all__ = [
    "Classifier",
    "Continuation",
    "LanguageModel",
    "MaskedLanguageModel",
    "Prediction",
    "QuestionAnswerer",
    "Tagged",
    "TokenClassifier",
    "asked",
    "evaluate",
    "evaluate_answering",
    "evaluate_on_text",
    "evaluate_tagging",
    "evaluation_rows",
    "evaluation_split",
    "is_language_model",
    "sentences",
    "task_of",
    "unlabelled_rows",
]
