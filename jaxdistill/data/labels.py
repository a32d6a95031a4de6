"""From labels as written (integers or names) to class indices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxdistill.data.rows import Rows, bad_rows_error
from jaxdistill.errors import DataError

UNLABELLED = -100
"""Class index of an example without a label; losses and metrics leave it out."""

_INTEGER = re.compile(r"[+-]?\d{1,9}")
_DECIMAL = re.compile(r"[+-]?\d{1,9}\.\d*")
_MOST_CLASSES = 100_000


class BadLabelError(Exception):
    """Why a label cannot be used; becomes part of a DataError that names the row."""


def parse_label(value: Any, names: Sequence[str] | None, num_classes: int | None = None) -> int | str | None:
    """A label as written, cleaned: an integer, a name, or None when there is none (also −1, as GLUE's test sets have).

    With `names`, or `num_classes` when the integers have no names, a label that is none of them is refused.

    Raises:
      BadLabelError: with the reason.
    """
    value = _plain(value)
    if value is None:
        return None
    if names is not None and str(value) in names:
        return str(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):  # integers beside missing ones, as pandas writes them
        value = _whole(float(value))
    number = int(value) if isinstance(value, int) or _INTEGER.fullmatch(value) else None
    if number == -1:
        return None
    if names is not None or num_classes is not None:
        return _in_range(value, number, names, len(names) if names is not None else num_classes or 0)
    if number is not None and not 0 <= number < _MOST_CLASSES:
        raise BadLabelError(f"label {number}: integers count the classes from 0 (and below {_MOST_CLASSES:,})")
    return value


def _in_range(value: int | str, number: int | None, names: Sequence[str] | None, num_classes: int) -> int:
    if number is not None and 0 <= number < num_classes:
        return number
    if number is not None:
        raise BadLabelError(f"label {number} is not between 0 and {num_classes - 1}")
    near = difflib.get_close_matches(str(value), names or (), n=1)
    meant = f", did you mean {near[0]!r}?" if near else ""
    raise BadLabelError(f"unknown label {value!r}{meant or ', expected ' + _listed(names)}")


def _plain(value: Any) -> int | str | None:
    """Booleans and whole floats (pandas' integers beside missing ones) as int, strings stripped, missing as None."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or value != value:  # NaN differs from itself
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _whole(value)
    raise BadLabelError(f"label is a {type(value).__name__}; expected an integer or a name")


def _whole(value: float) -> int:
    if not value.is_integer():
        raise BadLabelError(
            f"label is the number {value!r}; expected an integer or a name (if it is a name, list it in "
            "data.label_names)"
        )
    return int(value)


def _listed(names: Sequence[str] | None) -> str:
    if not names:
        return "an integer"
    return "one of " + ", ".join(names[:8]) + (f", … ({len(names)} names)" if len(names) > 8 else "")


def encode_labels(
    rows: Rows, label_names: Sequence[str] | None = None, *, num_classes: int | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Class indices of the rows' labels, and the names of the classes.

    With `label_names`, names map onto their position and integers stand for themselves; but integers that the source
    itself gives names to (a hub data set's ClassLabel) are matched by these names if both sets of names are the same.
    Without, strings become the positions in their sorted set; integers, or strings that all look like integers, keep
    their value and have no names; some of each is an error, since one of them is probably a slip.

    Args:
      rows: N rows; `labels` may hold None, which become −100.
      label_names: the classes in order, or None to find them.
      num_classes: without names: refuse integers not below it.

    Returns:
      int32 [N] class indices (−100: no label), and the names or None.

    Raises:
      DataError: naming the first rows whose label is none of the classes.
    """
    names = tuple(label_names) if label_names is not None else rows.label_names
    if rows.labels is None:
        return np.full(len(rows), UNLABELLED, np.int32), names
    if names is not None and rows.label_names is not None and names != rows.label_names:
        rows = _by_source_names(rows, rows.label_names, names)
    labels = rows.labels
    assert labels is not None
    if names is None:
        names = _found_names(rows)
        if names is not None:
            labels = [None if label is None else str(label) for label in labels]
    index = {} if names is None else {name: position for position, name in enumerate(names)}
    encoded = np.full(len(labels), UNLABELLED, np.int32)
    problems = []
    for place, label in enumerate(labels):
        try:
            cleaned = parse_label(label, names, num_classes)
        except BadLabelError as reason:
            problems.append((int(rows.row_numbers[place]), str(reason)))
            continue
        if cleaned is not None:
            encoded[place] = index[cleaned] if cleaned in index else int(cleaned)
    if problems:
        advice = "correct them, or list the classes in data.label_names"
        raise bad_rows_error(rows.source, rows.unit, problems, len(labels), advice)
    return encoded, names


def _found_names(rows: Rows) -> tuple[str, ...] | None:
    """Sorted names when the labels are strings, None when they are integers or look like them."""
    rows_of: dict[int | str, int] = {}
    for label, number in zip(rows.labels or (), rows.row_numbers, strict=False):
        if label is not None:
            rows_of.setdefault(label, int(number))
    words = {label for label in rows_of if isinstance(label, str) and not _INTEGER.fullmatch(label)}
    integers = rows_of.keys() - words
    if words and integers:
        shown = [f"{label} in {rows.unit} {rows_of[label]}" for label in (min(integers, key=str), min(words))]
        raise DataError(
            f"{rows.source}: labels are partly integers ({shown[0]}) and partly names ({shown[1]}); correct the wrong "
            "ones, or list all classes in data.label_names"
        )
    return tuple(sorted(words)) or None


def _by_source_names(rows: Rows, own: tuple[str, ...], names: tuple[str, ...]) -> Rows:
    """Rows whose integers, named by the source, are written as those names when both name the same classes."""
    if set(own) == set(names):
        return replace(rows, labels=[own[label] if isinstance(label, int) else label for label in rows.labels or ()])
    if set(own) & set(names) or len(own) != len(names):
        raise DataError(
            f"{rows.source}: its labels are named {_listed(own)[7:]}, but {_listed(names)[7:]} were expected; "
            "set data.label_names to the names in the order of the data's integers"
        )
    return rows
