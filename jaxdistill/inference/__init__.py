"""Trained models applied to text: what `predict` and `evaluate` share."""

from jaxdistill.inference.classifier import Classifier, Prediction, evaluate, evaluation_rows, unlabelled_rows
from jaxdistill.inference.language_model import (
    Continuation,
    LanguageModel,
    evaluate_on_text,
    evaluation_split,
    is_language_model,
)

__all__ = [
    "Classifier",
    "Continuation",
    "LanguageModel",
    "Prediction",
    "evaluate",
    "evaluate_on_text",
    "evaluation_rows",
    "evaluation_split",
    "is_language_model",
    "unlabelled_rows",
]
