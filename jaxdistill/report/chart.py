"""Learning curves as inline SVG: lines over optimizer steps, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_WIDTH, _HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 12, 34
_MOST_POINTS = 300


@dataclass(frozen=True)
class Series:
    """One line. style: its CSS class. dots: mark each point (few, measured ones). faint: a repeat behind the first."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    faint: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    vertical: Literal["data", "from_zero", "log"] = "data",
    mark: float | None = None,
) -> str:
    """An `<svg>` of lines over steps.

    Args:
      series: drawn in order, faint ones first; points that are not finite are left out.
      label: what the chart shows, for those who cannot see it.
      vertical: the vertical axis spans the `data`, starts at 0 (losses), or is logarithmic (perplexities, which are
        positive and fall by orders of magnitude).
      mark: a step to mark with a vertical line (the best checkpoint).

    Returns:
      the element as text; an empty string where there is no point to draw.
    """
    drawn = [(line, points) for line in series if (points := _thin(line.points))]
    if not drawn:
        return ""
    steps = [x for _, points in drawn for x, _ in points]
    values = [y for _, points in drawn for _, y in points]
    x_ticks = ticks(min(0.0, *steps), max(steps), most=6)
    lowest = min(0.0, *values) if vertical == "from_zero" else min(values)
    y_ticks = log_ticks(lowest, max(values)) if vertical == "log" else ticks(lowest, max(values), most=6)
    scale = math.log if vertical == "log" else float
    x_range = (min(0.0, *steps), max(*steps, 1.0))
    bottom, top = scale(y_ticks[0]), scale(y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (scale(y) - bottom) / (top - bottom)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = _axes(x_ticks, y_ticks, x_range, place)
    if mark is not None and x_range[0] <= mark <= x_range[1]:
        x, _ = place(mark, y_ticks[0])
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}">'
            f"<title>best checkpoint, step {mark:g}</title></line>"
        )
    for line, points in sorted(drawn, key=lambda pair: not pair[0].faint):
        parts += _line(line, points, place)
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'xmlns="http://www.w3.org/2000/svg">\n' + "\n".join(parts) + "\n</svg>"
    )


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers, at most `most` + 1 and at least two, from at or below `low` to at or above `high`."""
    span, size = high - low, max(abs(low), abs(high))
    if span <= max(size * 1e-9, 1e-12):  # flat: a band around the value, so that the line has a place
        pad = size * 0.05 if size > 1e-9 else 0.5
        low, high, span = low - pad, high + pad, 2 * pad
    raw = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.15g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round positive numbers for a logarithmic axis, two to seven, from at or below `low` to at or above `high`."""
    if high < 3 * low:  # so narrow that it is nearly linear
        return ticks(low, high, most=6)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    decades = last - first
    if decades > 3:
        stride = math.ceil(decades / 6)
        return [float(f"1e{power}") for power in range(first, last + stride, stride)]
    digits = (1, 2, 5) if decades <= 2 else (1, 3)
    found = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
    start = max(index for index, value in enumerate(found) if value <= low * (1 + 1e-9))
    end = min(index for index, value in enumerate(found) if value >= high * (1 - 1e-9))
    return found[start : end + 1]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite points; of very many, means over equal runs, so that the page stays small."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(finite) / _MOST_POINTS)
    if size <= 1:
        return finite
    runs = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _axes(x_ticks, y_ticks, x_range, place) -> list[str]:
    parts = []
    for value in y_ticks:
        _, y = place(x_range[0], value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 7}" y="{y + 4:.1f}">{value:.6g}</text>')
    for value in x_ticks:
        if value <= x_range[1]:
            x, _ = place(value, y_ticks[0])
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}">{value:,.6g}</text>'
            )
    parts.append(f'<text class="tick" text-anchor="end" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}">step</text>')
    return parts


def _line(line: Series, points: list[tuple[float, float]], place) -> list[str]:
    style = f"line {line.style}" + (" faint" if line.faint else "")
    placed = [place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [f'<polyline class="{style}" points="{path}"><title>{escape(line.name)}</title></polyline>']
    if line.dots or len(placed) == 1:
        for (x, y), (step, value) in zip(placed, points, strict=True):
            title = escape(f"{line.name}: {value:.4f} at step {step:,.0f}")
            parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{title}</title></circle>')
    return parts
