"""Bars with their spread as an SVG that needs neither a style sheet nor a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jaxdistill.bench.spread import Spread

_LABELS, _PLOT, _VALUES = 230, 380, 150
_BAR, _GAP, _GROUP = 16, 6, 30
_COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#97bbf5")


@dataclass(frozen=True)
class Bar:
    """One bar: whose it is, how long it is in the end, and between what it lay. text: what is written behind it."""

    name: str
    value: Spread
    text: str


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """An `<svg>` of horizontal bars from 0 to the median, with a line from the least to the greatest value.

    Args:
      title: above the chart.
      groups: (heading, bars); all bars have one scale.
    """
    most = max(bar.value["max"] for _, bars in groups for bar in bars)
    names = list(dict.fromkeys(bar.name for _, bars in groups for bar in bars))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    parts, y = [_text(8, 20, title, weight="bold")], 36
    for heading, bars in groups:
        parts.append(_text(8, y + 12, heading, weight="bold"))
        y += _GROUP - _GAP
        for bar in bars:
            parts += _bar(bar, y, scale=_PLOT / most, colour=colours[bar.name])
            y += _BAR + _GAP
        y += _GAP
    width = _LABELS + _PLOT + _VALUES
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {y + 8}" width="{width}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(bar: Bar, y: int, *, scale: float, colour: str) -> list[str]:
    median, low, high = (bar.value[key] * scale for key in ("median", "min", "max"))
    middle = y + _BAR / 2
    return [
        _text(_LABELS - 8, y + 12, bar.name, anchor="end"),
        f'<rect x="{_LABELS}" y="{y}" width="{median:.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<line x1="{_LABELS + low:.1f}" x2="{_LABELS + high:.1f}" y1="{middle}" y2="{middle}" stroke="#000"/>',
        _text(round(_LABELS + high + 6), y + 12, bar.text),
    ]


def _text(x: int, y: int, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
