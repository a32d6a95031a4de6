"""`predict`: lines in, labels out, in chunks and in order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from jaxdistill.errors import DataError
from jaxdistill.inference import Classifier, Prediction, unlabelled_rows

Line = tuple[int, str]


def argument_lines(texts: Sequence[str]) -> Iterator[Line]:
    """Texts of the command line, numbered from 1."""
    yield from enumerate(texts, start=1)


def stdin_lines(stream: BinaryIO) -> Iterator[Line]:
    """Lines of a stream without their ends, numbered from 1.

    Raises:
      DataError: a line that is not UTF-8.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            yield number, raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"stdin, line {number}: not UTF-8 ({error.reason}); convert it first") from None


def predict_lines(
    classifier: Classifier, lines: Iterable[Line], *, source: str, unit: str, pair: bool, at_once: int
) -> Iterator[tuple[str, Prediction | None]]:
    """Every line with its prediction, None for a blank one; `at_once` lines are read before the first is answered."""
    lines = iter(lines)
    while chunk := list(itertools.islice(lines, at_once)):
        written = [line for line in chunk if line[1].strip()]
        rows = unlabelled_rows(written, source=source, unit=unit, pair=pair)
        predictions = iter(classifier.predictions(classifier.row_logits(rows)))
        for _, text in chunk:
            yield text, (next(predictions) if text.strip() else None)


def format_line(text: str, prediction: Prediction | None, *, as_json: bool, every: bool) -> str:
    """One line of output: label, probability, with `every` name=probability of all labels, and the text."""
    if as_json:
        found = {"label": prediction and prediction.label, "probability": prediction and prediction.probability}
        if every:
            found["probabilities"] = prediction and prediction.probabilities
        return json.dumps({"text": text, **found}, ensure_ascii=False)
    if prediction is None:
        return ""
    fields = [prediction.label, f"{prediction.probability:.4f}"]
    if every:
        fields.append(" ".join(f"{name}={value:.4f}" for name, value in prediction.probabilities.items()))
    return "\t".join([*fields, " ".join(text.splitlines())])
