"""The chain as an inline SVG: given teachers, stages and controls, each in the column after its last teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_WIDTH, _HEIGHT = 186, 66
_GAP_X, _GAP_Y = 44, 22
_MARGIN = 8
_LANE = 18  # height of a place where an edge only passes by


@dataclass(frozen=True)
class Node:
    """One box: what is written in it (label, two lines of detail, a tooltip) and the nodes it learns from."""

    name: str
    label: str
    kind: Literal["given", "stage", "control", "pending"]
    lines: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    title: str = ""


@dataclass
class _Place:
    """A slot of a column: a node's box, or (node None) the passage of an edge that spans several columns."""

    column: int
    node: Node | None
    sources: list[_Place]
    order: float = 0.0
    y: float = 0.0

    @property
    def height(self) -> int:
        return _HEIGHT if self.node else _LANE

    @property
    def x(self) -> int:
        return _MARGIN + self.column * (_WIDTH + _GAP_X)

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def chain_diagram(nodes: Sequence[Node]) -> str:
    """An `<svg>` of the chain, from left (teachers) to right (students).

    Args:
      nodes: in run order; a teacher that is not a node itself is left out.

    Returns:
      the element as text, coloured by the page's style sheet (classes node-KIND, edge); empty for no nodes.
    """
    if not nodes:
        return ""
    places, edges = _layout(nodes)
    width = max(place.x for place in places) + _WIDTH + _MARGIN
    height = max(place.y + place.height for place in places) + _MARGIN
    parts = [_edge(edge) for edge in edges] + [_box(place, place.node) for place in places if place.node]
    label = escape("Chain: " + "; ".join(f"{node.name} from {', '.join(node.teachers) or 'labels'}" for node in nodes))
    return (
        f'<svg class="chain" role="img" aria-label="{label}" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">\n'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="arrowhead" d="M0 0.5 L7.5 4 L0 7.5 z"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>"
    )


def columns(nodes: Sequence[Node]) -> dict[str, int]:
    """Column of every node: 0 without a teacher, else one after its farthest teacher. Nodes are in run order."""
    found: dict[str, int] = {}
    for node in nodes:
        found[node.name] = max((found[name] + 1 for name in node.teachers if name in found), default=0)
    return found


def _layout(nodes: Sequence[Node]) -> tuple[list[_Place], list[list[_Place]]]:
    """Places of all boxes and passages, and each edge as the places it runs through, teacher first."""
    column = columns(nodes)
    at: dict[str, _Place] = {}
    places: list[_Place] = []
    edges: list[list[_Place]] = []
    for node in nodes:
        at[node.name] = place = _Place(column[node.name], node, [])
        for name in dict.fromkeys(node.teachers):
            if name not in at or name == node.name:
                continue
            path = [at[name]]
            for passed in range(at[name].column + 1, place.column):
                path.append(_Place(passed, None, [path[-1]]))
                places.append(path[-1])
            place.sources.append(path[-1])
            edges.append([*path, place])
        places.append(place)
    _stack(places)
    return places, edges


def _stack(places: list[_Place]) -> None:
    """Give every place its height on the page: by the mean height of its sources, columns centred on each other."""
    grid: dict[int, list[_Place]] = {}
    for place in places:
        grid.setdefault(place.column, []).append(place)
    tallest = max(sum(place.height + _GAP_Y for place in stack) for stack in grid.values()) - _GAP_Y
    for number in sorted(grid):
        stack = grid[number]
        for index, place in enumerate(stack):
            # Without sources, and among equals, the order in which the run was written decides.
            place.order = sum(source.middle for source in place.sources) / max(len(place.sources), 1) + 1e-3 * index
        stack.sort(key=lambda place: place.order)
        y = _MARGIN + (tallest - sum(place.height + _GAP_Y for place in stack) + _GAP_Y) / 2
        for place in stack:
            place.y = y
            y += place.height + _GAP_Y


def _edge(path: list[_Place]) -> str:
    """A smooth line from the right side of the first place, through the passages, to the left side of the last."""
    start, end = path[0], path[-1]
    x, y = start.x + _WIDTH, start.middle
    line = f"M{x} {y:.1f}"
    for place in path[1:]:
        bend = (place.x - x) / 2
        arrive = place.x - (3 if place is end else 0)
        line += f" C{x + bend:.1f} {y:.1f} {place.x - bend:.1f} {place.middle:.1f} {arrive} {place.middle:.1f}"
        if place is not end:
            line += f" H{place.x + _WIDTH}"
        x, y = place.x + _WIDTH, place.middle
    return f'<path class="edge" d="{line}" marker-end="url(#arrow)"/>'


def _box(place: _Place, node: Node) -> str:
    x, y = place.x, place.y
    text = [f'<text class="name" x="{x + 11}" y="{y + 23:.1f}">{escape(_cut(node.label, 20))}</text>']
    for index, line in enumerate(node.lines[:2]):
        text.append(f'<text class="detail" x="{x + 11}" y="{y + 41 + 16 * index:.1f}">{escape(_cut(line, 29))}</text>')
    title = escape(node.title or " · ".join((node.name, *node.lines)))
    return (
        f'<g class="node node-{node.kind}"><title>{title}</title>'
        f'<rect x="{x}" y="{y:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>{"".join(text)}</g>'
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
