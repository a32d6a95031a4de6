"""A trained classifier applied to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdistill import data, models
from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data.rows import bad_rows_error
from jaxdistill.distill.teacher_cache import compute_logits
from jaxdistill.errors import DataError, ModelError
from jaxdistill.inference.encoder import load_encoder
from jaxdistill.train.evaluate import evaluate_logits
from jaxdistill.typing import Float, Int


@dataclass(frozen=True)
class Prediction:
    """The most probable label of one text, and the probabilities of all labels in the model's order."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """A model directory or hub id, its tokenizer and a compiled forward pass.

    labels: names of the classes in order; their numbers where the model has no names (`named` is then false).
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
        """Load everything.

        Args:
          source: Hugging Face directory or hub id.
          revision: branch, tag or commit of a hub id.
          batch_size: most texts in one forward pass.
          max_length: most tokens of a text (default and upper bound: the model's positions).
          truncate: cut longer texts instead of refusing them.

        Raises:
          ModelError: not a classifier, or a tokenizer that does not belong to it.
          ExternalError: the hub cannot be reached or does not know the id.
        """
        self.encoder = load_encoder(
            source, task="classification", head="classifier", revision=revision, max_length=max_length
        )
        self.source, self.model, self.params = self.encoder.source, self.encoder.model, self.encoder.params
        self.tokenizer, self.max_length = self.encoder.tokenizer, self.encoder.max_length
        self.truncate = truncate
        self.batch_size = batch_size
        names = self.model.config.id2label
        self.named = names is not None
        self.labels = names or tuple(str(index) for index in range(self.model.num_labels))

    def logits(self, texts: Sequence[str], pair: Sequence[str] | None = None) -> Float[np.ndarray, "N C"]:
        """Logits of texts, or of pairs of texts, in their order; float32.

        Raises:
          DataError: a text is longer than `max_length` tokens, unless they are to be truncated.
        """
        columns = (list(texts),) if pair is None else (list(texts), list(pair))
        return self.row_logits(data.Rows(columns, None, np.arange(1, len(texts) + 1), "texts", unit="text"))

    def row_logits(self, rows: data.Rows) -> Float[np.ndarray, "N C"]:
        """As `logits`, of rows that know where they come from (errors name their source and number)."""
        if not len(rows):
            return np.zeros((0, self.model.num_labels), np.float32)
        dataset = self._tokenized(rows)
        batches = self.encoder.batches(dataset, batch_size=self.batch_size)
        return compute_logits(self.model, self.params, batches, len(rows))

    def predict(self, texts: Sequence[str], pair: Sequence[str] | None = None) -> list[Prediction]:
        """The most probable label of every text; errors as `logits`."""
        return self.predictions(self.logits(texts, pair))

    def predictions(self, logits: Float[np.ndarray, "N C"]) -> list[Prediction]:
        """Logits as probabilities and labels."""
        shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
        found = []
        for row in shifted / shifted.sum(-1, keepdims=True):
            best = int(row.argmax())
            probabilities = dict(zip(self.labels, map(float, row), strict=True))
            found.append(Prediction(self.labels[best], float(row[best]), probabilities))
        return found

    def _tokenized(self, rows: data.Rows) -> data.TokenizedDataset:
        """The rows' tokens, not kept on disk: what is asked of a model is nobody else's business."""
        first, pair = rows.texts[0], (rows.texts[1] if len(rows.texts) > 1 else None)
        ragged = self.tokenizer.encode(first, pair)
        lengths = np.diff(ragged.offsets)
        long = np.flatnonzero(lengths > self.max_length)
        if len(long) and not self.truncate:
            problems = [(int(rows.row_numbers[row]), f"{lengths[row]} tokens") for row in long]
            advice = f"more than {self.max_length} tokens; shorten them, or let them be cut with --truncate"
            raise bad_rows_error(rows.source, rows.unit, problems, len(rows), advice)
        if len(long):
            second = None if pair is None else [pair[row] for row in long]
            cut = self.tokenizer.encode_truncated([first[row] for row in long], second, self.max_length)
            ragged = ragged.replace(long, cut)
        lengths = np.diff(ragged.offsets).astype(np.int32)
        unlabelled = np.full(len(rows), -100, np.int32)
        return data.TokenizedDataset((ragged,), unlabelled, lengths, len(long), self.max_length, "")


def evaluate(
    classifier: Classifier,
    rows: data.Rows,
    *,
    data_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    teacher: Classifier | None = None,
) -> dict[str, Any]:
    """How good a classifier is on labelled rows, and how close to a teacher.

    Args:
      classifier: the model.
      rows: texts with labels.
      data_names: names of the data's integer labels (default: those the source gives, if any).
      label_names: what the model's classes are called in the data, in the model's order (default: the model's names).
      teacher: a classifier of the same labels.

    Returns:
      {"accuracy", "f1", "loss"}, with a teacher also "kl", "agreement", "teacher_accuracy" and "retention".

    Raises:
      DataError: labels that are none of the model's.
      ModelError: a teacher with other labels.
    """
    labels = _class_indices(classifier, rows, data_names, label_names)
    logits = classifier.row_logits(rows)
    if teacher is None:
        return evaluate_logits(logits, None, labels)
    order = teacher_order(classifier, teacher)
    teacher_logits = teacher.row_logits(rows)[:, order]
    metrics = evaluate_logits(logits, teacher_logits, labels)
    metrics["teacher_accuracy"] = evaluate_logits(teacher_logits, None, labels)["accuracy"]
    if metrics["teacher_accuracy"]:
        metrics["retention"] = metrics["accuracy"] / metrics["teacher_accuracy"]
    return metrics


def evaluation_rows(
    config: DataConfig, split: str | None = None, *, load: Callable[..., Any] = data.load_rows
) -> tuple[Any, str]:
    """The labelled rows of a configuration to evaluate on, and the name of their split.

    Args:
      config: data of a run or a stage.
      load: what reads a source for the configuration's task.
      split: `validation` or `test`; default: test if the configuration has it. A validation set that is left out is
        the share of train that a run holds out.

    Raises:
      DataError: no such split, or nothing usable in it.
    """
    split = split or ("test" if config.test else "validation")
    source: SourceConfig | None = getattr(config, split)
    if source is not None:
        return load(config, source), split
    if split == "test" or config.train is None:
        raise DataError(f"data.{split}: the configuration has none; choose another --split, or give --data FILE")
    return data.split_by_hash(load(config, config.train), config.validation_share)[1], split


def _class_indices(
    classifier: Classifier, rows: data.Rows, data_names: Sequence[str] | None, label_names: Sequence[str] | None
) -> Int[np.ndarray, " N"]:
    """The rows' labels as the model's classes: numbers as they are, names by name, never by guessing."""
    count = classifier.model.num_labels
    known = tuple(data_names or rows.label_names or ()) or None
    labels, found = data.encode_labels(rows, known, num_classes=count)
    if not (labels >= 0).any():
        raise DataError(f"{rows.source}: no row has a label; nothing to evaluate against")
    theirs = tuple(label_names or ()) or (classifier.labels if classifier.named else known)
    if found is None:
        return labels
    if theirs is None:
        raise DataError(
            f"{rows.source}: labels are names ({', '.join(found[:4])}), but {classifier.source} does not name its "
            f"{count} classes; say what they are called, in its order, with --label-names"
        )
    places = {name.casefold(): place for place, name in enumerate(theirs)}
    unknown = [name for name in found if name.casefold() not in places]
    if unknown or len(theirs) != count:
        raise DataError(
            f"{rows.source}: labels are {', '.join(found)}, those of {classifier.source} are {', '.join(theirs)} "
            f"({count} classes); say what its classes are called in the data, in its order, with --label-names"
        )
    order = np.asarray([places[name.casefold()] for name in found], np.int32)
    return np.where(labels >= 0, order[labels], labels)


class Labelling(Protocol):
    """A model with classes, which have names if `named`."""

    model: models.Model
    source: str
    labels: tuple[str, ...]
    named: bool


def teacher_order(student: Labelling, teacher: Labelling) -> list[int]:
    """For each class of the student, the teacher's class of the same name.

    Raises:
      ModelError: the teacher has other classes.
    """
    if student.named and teacher.named:
        places = {name.casefold(): index for index, name in enumerate(teacher.labels)}
        wanted = [name.casefold() for name in student.labels]
        if set(places) == set(wanted):
            return [places[name] for name in wanted]
    elif student.model.num_labels == teacher.model.num_labels:
        return list(range(student.model.num_labels))
    raise ModelError(
        f"teacher {teacher.source}: its labels are {', '.join(teacher.labels)}, those of {student.source} are "
        f"{', '.join(student.labels)}; give a teacher of the same labels"
    )


def unlabelled_rows(lines: Sequence[tuple[int, str]], *, source: str, unit: str, pair: bool) -> data.Rows:
    """Texts with their numbers as rows; with `pair` each is two texts with a TAB between.

    Raises:
      DataError: a pair without a TAB.
    """
    numbers = np.asarray([number for number, _ in lines], np.int64)
    texts = [text for _, text in lines]
    if not pair:
        return data.Rows((texts,), None, numbers, source, unit=unit)
    parts = [text.partition("\t") for text in texts]
    problems = [(int(number), "no TAB") for number, (_, tab, _) in zip(numbers, parts, strict=True) if not tab]
    if problems:
        raise bad_rows_error(source, unit, problems, len(texts), "a pair is two texts with a TAB between them")
    return data.Rows(([a for a, _, _ in parts], [b for _, _, b in parts]), None, numbers, source, unit=unit)
