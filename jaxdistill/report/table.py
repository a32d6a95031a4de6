"""summary.json as rows: repeated stages become mean ± standard deviation, and a table in the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxdistill.report.columns import CLASSIFIERS, Estimate, Measures, measures_of

if TYPE_CHECKING:
    from rich.console import Console

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Row:
    """One stage of a summary, or one seed of it.

    quality: {split: {metric: Estimate}}, retention among the metrics. train: {measure: Estimate}.
    members: one row per seed of a repeated stage, otherwise empty. inference: how fast it answers, if it was measured.
    """

    name: str
    given: bool
    teachers: tuple[str, ...]
    architecture: str
    parameters: int | None
    bytes: int | None
    seed: int | None
    quality: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    train: Mapping[str, Estimate] = field(default_factory=dict)
    members: tuple[Row, ...] = ()
    inference: Mapping[str, Any] | None = None

    @property
    def source(self) -> str:
        """Whom the stage learns from, as people read it."""
        if self.given:
            return "given"
        alone = "labels" if measures_of_rows([self]) is CLASSIFIERS else "text"
        return " + ".join(map(short_name, self.teachers)) or alone


def summary_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Rows in the order of the summary, the seeds of one stage gathered under the place of its first.

    Args:
      summary: the content of summary.json; a partial one (a run in progress) is fine.

    Returns:
      one `Row` per stage name. Of a repeated stage every number is the mean over the seeds that have it, with
      the sample standard deviation from two seeds on.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for entry in summary.get("stages") or ():
        stages.setdefault(str(entry.get("name")), []).append(entry)
    return [_row(entries) for entries in stages.values()]


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """Print what a run came to: sizes and training, then quality on validation and, apart from it, on test."""
    rows = summary_rows(summary)
    if not rows:
        console.print("no stage has finished yet")
        return
    measures = measures_of_rows(rows)
    console.print(_models_table(rows, measures))
    for split in SPLITS:
        if any(row.quality.get(split) for row in rows):
            console.print()
            console.print(_quality_table(rows, split, measures))


def measures_of_rows(rows: Iterable[Row]) -> Measures:
    """What to show of these rows, by what was measured on any of them."""
    return measures_of({key for row in rows for metrics in row.quality.values() for key in metrics})


def short_name(name: str) -> str:
    """A given teacher's name for a narrow place: of a path its last part; stages and hub ids as they are."""
    return name.rstrip("/").rpartition("/")[2] if name.count("/") > 1 or name.startswith((".", "/", "~")) else name


def compact(count: float | None) -> str:
    """A count in three digits, as people say it: 243K, 22.7M."""
    return _scaled(count, (("B", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0)))


def byte_size(count: float | None) -> str:
    """Bytes in three digits and decimal units, as disks and model hubs count them."""
    return _scaled(count, ((" GB", 1e9), (" MB", 1e6), (" kB", 1e3), (" B", 1.0)))


def _scaled(count: float | None, units: tuple[tuple[str, float], ...]) -> str:
    if count is None:
        return ""
    # 0.9995: what would be rounded to 1000 of the smaller unit is 1 of this one.
    unit, size = next(((unit, size) for unit, size in units if count >= 0.9995 * size), units[-1])
    return f"{count / size:.3g}{unit}"


def _row(entries: list[Mapping[str, Any]]) -> Row:
    first = entries[0]
    repeated = len(entries) > 1 or "/seed-" in str(first.get("key", ""))
    return Row(
        name=str(first.get("name")),
        given=bool(first.get("given")),
        teachers=tuple(str(name) for name in first.get("teacher") or ()),
        architecture=str(first.get("architecture") or ""),
        parameters=first.get("parameters"),
        bytes=first.get("bytes"),
        seed=None if repeated else first.get("seed"),
        quality={split: _quality(entries, split) for split in SPLITS},
        train=_estimates([entry.get("train") or {} for entry in entries]),
        members=tuple(_member(entry) for entry in entries) if repeated else (),
        inference=next((entry["inference"] for entry in entries if entry.get("inference")), None),
    )


def _member(entry: Mapping[str, Any]) -> Row:
    row = _row([{**entry, "key": entry.get("name")}])
    return Row(**{**vars(row), "seed": entry.get("seed")})


def _quality(entries: list[Mapping[str, Any]], split: str) -> dict[str, Estimate]:
    measured = []
    for entry in entries:
        numbers = dict((entry.get("eval") or {}).get(split) or {})
        numbers["retention"] = (entry.get("retention") or {}).get(split)
        measured.append(numbers)
    return _estimates(measured)


def _estimates(measured: Iterable[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Mean and deviation of every number that at least one seed has; a missing or non-finite one is left out."""
    values: dict[str, list[float]] = {}
    for numbers in measured:
        for key, value in numbers.items():
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(key, []).append(float(value))
    return {
        key: Estimate(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)
        for key, found in values.items()
    }


def _stage_label(row: Row) -> str:
    name = short_name(row.name)
    return f"{name} × {len(row.members)} seeds" if len(row.members) > 1 else name


def _models_table(rows: Sequence[Row], measures: Measures) -> Any:
    table = text_table("Models", left=("stage", "learns from", "architecture"))
    for title in ("params", "bytes", *(column.title for column in measures.training)):
        table.add_column(title, justify="right", min_width=len(title))
    for row in rows:
        numbers = [
            compact(row.parameters),
            byte_size(row.bytes),
            *(column.text(row.train) for column in measures.training),
        ]
        _add(table, _stage_label(row), row.source, row.architecture, *numbers)
    return table


def _quality_table(rows: Sequence[Row], split: str, measures: Measures) -> Any:
    title = "Validation (chose the checkpoints)" if split == "validation" else "Test (only reported)"
    table = text_table(title, left=("stage",))
    for title in ("params", *(column.title for column in measures.evaluated)):
        table.add_column(title, justify="right", min_width=len(title))
    for row in rows:
        numbers = (column.text(row.quality.get(split)) for column in measures.evaluated)
        _add(table, _stage_label(row), compact(row.parameters), *numbers)
    return table


def text_table(title: str, *, left: tuple[str, ...]) -> Any:
    """An empty table whose `left` columns are text; numbers go to the right of them."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding = (0, 1, 0, 0)
    for column in left:
        table.add_column(column, overflow="fold", min_width=9)
    return table


def _add(table: Any, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*map(Text, cells))  # Text: in a str, rich would read a name's [brackets] as markup
