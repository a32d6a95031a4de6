"""A trained token classifier applied to words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import data
from jaxdistill.data.tagged import TaggedRows, encode_tags, found_tags
from jaxdistill.data.tags import Entity, entities
from jaxdistill.data.words import WordDataset, tokenize_words
from jaxdistill.errors import DataError
from jaxdistill.inference.classifier import teacher_order
from jaxdistill.inference.encoder import load_encoder
from jaxdistill.train.evaluate_positions import evaluate_tags, predicted_tags, tag_logits
from jaxdistill.typing import Float


@dataclass(frozen=True)
class Tagged:
    """A sentence's words, the tag of each with its probability (1 for a word without tokens), and its entities."""

    words: list[str]
    tags: list[str]
    probabilities: list[float]
    entities: list[Entity]


class TokenClassifier:
    """A model directory or hub id, its tokenizer and a compiled forward pass.

    labels: names of the tags in order; their numbers where the model has no names (`named` is then false).
    """

    BATCH_SIZE = 64

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        batch_size: int = BATCH_SIZE,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        """Load everything; arguments and errors as of `Classifier`."""
        self.encoder = load_encoder(
            source, task="token_classification", head="classifier of tokens", revision=revision, max_length=max_length
        )
        self.source, self.model, self.params = self.encoder.source, self.encoder.model, self.encoder.params
        self.tokenizer = self.encoder.tokenizer
        self.batch_size, self.truncate = batch_size, truncate
        names = self.model.config.id2label
        self.named = names is not None
        self.labels = names or tuple(str(index) for index in range(self.model.num_labels))

    def dataset(self, rows: TaggedRows, tags: np.ndarray | None = None) -> WordDataset:
        """The rows as tokens, which are not kept on disk.

        Raises:
          DataError: a sentence has more than `max_length` tokens, unless it is to be truncated.
        """
        length = self.encoder.max_length
        return tokenize_words(rows, self.tokenizer, tags, max_length=length, truncate=self.truncate, cache=False)

    def logits(self, dataset: WordDataset) -> Float[np.ndarray, "P C"]:
        """At the first token of every word that has one."""
        batches = self.encoder.batches(dataset.tokens, batch_size=self.batch_size)
        return tag_logits(self.model, self.params, dataset, batches)

    def predict(self, rows: TaggedRows) -> list[Tagged]:
        """The most likely tag of every word; errors as `dataset`."""
        if not len(rows):
            return []
        dataset = self.dataset(rows)
        logits = self.logits(dataset).astype(np.float64)
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        certain = np.ones(len(dataset.tags))
        certain[dataset.words] = 1 / shifted.sum(-1)
        found = predicted_tags(logits, dataset, self.labels)
        return [
            Tagged(words, tags, certain[begin : begin + len(words)].tolist(), entities(tags))
            for words, tags, begin in zip(rows.words, found, dataset.offsets[:-1], strict=True)
        ]


def evaluate_tagging(
    tagger: TokenClassifier,
    rows: TaggedRows,
    *,
    data_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    teacher: TokenClassifier | None = None,
) -> dict[str, Any]:
    """How good a token classifier is on sentences with tags, and how close to a teacher.

    Args:
      tagger: the model.
      rows: sentences with tags.
      data_names: names of the data's integer tags (default: those the source gives, if any).
      label_names: what the model's classes are called in the data, in the model's order (default: the model's names).
      teacher: a token classifier of the same tags and tokens.

    Returns:
      {"f1", "precision", "recall", "accuracy", "loss"}, with a teacher also "kl", "agreement", "teacher_f1" and
      "retention" (of F1).

    Raises:
      DataError: tags that are none of the model's.
      ModelError: a teacher with other tags or another vocabulary.
    """
    names = _names(tagger, rows, label_names)
    if data_names and rows.tag_names is None:
        rows = TaggedRows(**{**vars(rows), "tag_names": tuple(data_names)})
    dataset = tagger.dataset(rows, encode_tags(rows, names))
    logits = tagger.logits(dataset)
    if teacher is None:
        return evaluate_tags(logits, None, dataset, names)
    data.check_same_tokens(tagger.tokenizer, teacher.tokenizer)
    batches = tagger.encoder.batches(dataset.tokens, batch_size=tagger.batch_size)
    theirs = tag_logits(teacher.model, teacher.params, dataset, batches)[:, teacher_order(tagger, teacher)]
    metrics = evaluate_tags(logits, theirs, dataset, names)
    metrics["teacher_f1"] = evaluate_tags(theirs, None, dataset, names)["f1"]
    if metrics["teacher_f1"]:
        metrics["retention"] = metrics["f1"] / metrics["teacher_f1"]
    return metrics


def _names(tagger: TokenClassifier, rows: TaggedRows, label_names: Sequence[str] | None) -> tuple[str, ...]:
    """What the model's classes are called in the data, in its order."""
    if label_names is None and tagger.named:
        return tagger.labels
    found = found_tags(rows)
    names = tuple(label_names or rows.tag_names or (() if isinstance(found, int) else found))
    if label_names is None or len(names) != tagger.model.num_labels:
        listed = ", ".join(names) or "integers"
        raise DataError(
            f"{rows.source}: tags are {listed}, and {tagger.source} has {tagger.model.num_labels} classes"
            f"{'' if tagger.named else ' without names'}; say what they are called, in its order, with --label-names"
        )
    return names


def sentences(lines: Sequence[tuple[int, str]], *, source: str, unit: str) -> TaggedRows:
    """Lines with their numbers as sentences: words are what blanks separate."""
    numbers = np.asarray([number for number, _ in lines], np.int64)
    return TaggedRows([text.split() for _, text in lines], None, numbers, source, unit=unit)
