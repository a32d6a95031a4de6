"""`predict`: lines in, labels out, in chunks and in order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from jaxdistill.data.readers import is_unicode
from jaxdistill.errors import DataError
from jaxdistill.inference import Classifier, Prediction, unlabelled_rows

Line = tuple[int, str]

_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""What JSON leaves as it is and many readers of lines take for the end of one."""


def argument_lines(texts: Sequence[str]) -> Iterator[Line]:
    """Texts of the command line, numbered from 1.

    Raises:
      DataError: a text that is not UTF-8.
    """
    for number, text in enumerate(texts, start=1):
        if not is_unicode(text):
            raise DataError(f"arguments, text {number}: not UTF-8; convert it first")
        yield number, text


def stdin_lines(stream: BinaryIO) -> Iterator[Line]:
    """Lines of a stream without their ends and a byte order mark, numbered from 1.

    Raises:
      DataError: a line that is not UTF-8.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
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
        line = json.dumps({"text": text, **found}, ensure_ascii=False)
        return line.translate(_LINE_ENDS)
    if prediction is None:
        return ""
    fields = [prediction.label, f"{prediction.probability:.4f}"]
    if every:
        fields.append(" ".join(f"{name}={value:.4f}" for name, value in prediction.probabilities.items()))
    return "\t".join([*fields, " ".join(text.splitlines())])
