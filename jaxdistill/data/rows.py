"""Rows of text with optional labels, what is wrong with some of them, and how they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np

from jaxdistill.errors import DataError

_SHOWN = 3


@dataclass(frozen=True)
class Rows:
    """Examples as read, before labels become integers and texts become tokens.

    texts: one list per text column, equally long. labels: integers or names (None: an example without a label), or
    None when no label was read. row_numbers: int64 [N], where each stands in its source, counted in `unit` ("line" of
    a text file with its header as line 1, "row" from 1 otherwise). source: its name in messages. skipped: bad rows
    left out. label_names: names the source itself gives its integers (a hub data set's ClassLabel).
    """

    texts: tuple[list[str], ...]
    labels: list[int | str | None] | None
    row_numbers: np.ndarray
    source: str
    skipped: int = 0
    unit: str = "row"
    label_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.row_numbers)

    def take(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """The rows at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            texts=tuple([column[index] for index in chosen] for column in self.texts),
            labels=None if self.labels is None else [self.labels[index] for index in chosen],
            row_numbers=self.row_numbers[chosen],
        )


def bad_rows_error(source: str, unit: str, problems: Sequence[tuple[int, str]], total: int, advice: str) -> DataError:
    """One line for all `problems` (row number, reason) of a source of `total` rows; the first few are spelt out."""
    shown = "; ".join(f"{unit} {number}: {reason}" for number, reason in problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    rows = "row" if len(problems) == 1 else "rows"
    return DataError(f"{source}: {len(problems)} bad {rows} of {total} ({shown}{more}); {advice}")


class Splittable(Protocol):
    """Rows of any task. texts: what decides on which side each row falls."""

    @property
    def texts(self) -> tuple[list[str], ...]: ...
    @property
    def source(self) -> str: ...
    def __len__(self) -> int: ...
    def take(self, indices: Sequence[int] | np.ndarray) -> Self: ...


R = TypeVar("R", bound=Splittable)


def split_by_hash(rows: R, share: float) -> tuple[R, R]:
    """Splits rows into (train, held out) by a hash of the text alone.

    Rows with the same text fall on the same side, and a row's side depends on nothing else: neither on its position
    nor on the other rows, the machine or the Python version.

    Args:
      rows: at least two different texts.
      share: expected share of held-out rows, between 0 and 1.

    Raises:
      DataError: one of the sides would be empty.
    """
    held_out = np.fromiter(
        (text_share(parts, salt="held out") < share for parts in zip(*rows.texts, strict=True)), bool
    )
    if held_out.all() or not held_out.any():
        side = "training" if held_out.all() else "validation"
        raise DataError(
            f"{rows.source}: splitting off {share:g} of {len(rows)} rows by hash leaves none for {side}; "
            "give a validation file (data.validation) or change data.validation_share"
        )
    return rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))


def text_share(parts: Iterable[str], *, salt: str) -> float:
    """A number in [0, 1) that depends only on the texts and on `salt` (different salts are independent)."""
    digest = hashlib.blake2b(digest_size=8, person=salt.encode()[:16])
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "big") / 2**64
