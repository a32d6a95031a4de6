"""How fast a run's models answer, where `jaxdistill bench --inference` has measured it: a table and a piece of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from jaxdistill.report.columns import LANGUAGE_MODELS
from jaxdistill.report.table import (
    Row,
    byte_size,
    compact,
    measures_of_rows,
    short_name,
    summary_rows,
    text_table,
)

if TYPE_CHECKING:
    from rich.console import Console

_HEADS = ("parameters", "on disk", "p50 ms", "p95 ms", "{}/s", "{}/CPU-s", "× the first's speed")


def print_inference(summary: Mapping[str, Any], console: Console) -> None:
    """Print median latencies and how many times as fast as the first model each is; nothing if none was measured.

    A line for each batch size and length, a column for each model.
    """
    measured = [row for row in summary_rows(summary) if row.inference]
    if not measured:
        return
    table = text_table("Inference (p50 ms, × the first)", left=("batch × tokens",))
    for row in measured:
        table.add_column(short_name(row.name), justify="right", min_width=len(short_name(row.name)))
    for shape in _shapes(measured):
        cells = [_cell(row, shape) for row in measured]
        table.add_row(
            "{} × {}".format(*shape),
            *(f"{cell['p50_ms']:.3f}  {cell['faster_than_first']['ratio']:.2f}×" if cell else "" for cell in cells),
        )
    console.print()
    console.print(table)


def inference_section(rows: Sequence[Row]) -> str:
    """All that was measured of how fast the models answer, as HTML under a heading; else empty."""
    measured = [row for row in rows if row.inference]
    if not measured:
        return ""
    unit = "tokens" if measures_of_rows(rows) is LANGUAGE_MODELS else "examples"
    heads = "".join(f"<th>{escape(head.format(unit))}</th>" for head in _HEADS)
    lines = [line for shape in _shapes(measured) for line in _lines(measured, shape, unit)]
    first = str((measured[0].inference or {}).get("first"))
    device = (measured[0].inference or {}).get("device") or {}
    note = (
        f"Compiled forward passes without padding, {device.get('count', 1)} × {device.get('kind', '')}; the first is "
        f"{first}; in brackets, the least and greatest ratio of one turn."
    )
    return f"""<h3>Inference</h3>
<div class="scroll"><table>
<thead><tr><th class="first">batch × tokens</th><th class="text">model</th>{heads}</tr></thead>
<tbody>
{"".join(lines)}</tbody>
</table></div>
<p class="note">{escape(note)}</p>"""


def _lines(rows: Sequence[Row], shape: tuple[int, int], unit: str) -> Iterator[str]:
    """A line for each model that was measured at this batch size and length."""
    title = "{} × {}".format(*shape)
    for row in rows:
        cell = _cell(row, shape)
        if cell is None or row.inference is None:
            continue
        faster = cell["faster_than_first"]
        numbers = (
            compact(row.inference["parameters"]),
            byte_size(row.inference["bytes"]),
            f"{cell['p50_ms']:.3f}",
            f"{cell['p95_ms']:.3f}",
            f"{cell[f'{unit}_per_second']['median']:,.0f}",
            f"{cell[f'{unit}_per_cpu_second']['median']:,.0f}",
            f"{faster['ratio']:.2f} ({faster['min']:.2f} – {faster['max']:.2f})",
        )
        name = escape(short_name(row.name))
        yield (
            f'<tr><td class="first">{title}</td><td class="text">{name}</td>'
            + "".join(f"<td>{number}</td>" for number in numbers)
            + "</tr>\n"
        )
        title = ""


def _shapes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(batch, tokens) of everything measured, by size."""
    return sorted({(cell["batch"], cell["length"]) for row in rows for cell in (row.inference or {})["cells"]})


def _cell(row: Row, shape: tuple[int, int]) -> Mapping[str, Any] | None:
    cells = (row.inference or {})["cells"]
    return next((cell for cell in cells if (cell["batch"], cell["length"]) == shape), None)
