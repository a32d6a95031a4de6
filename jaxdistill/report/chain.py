"""Which boxes the chain's diagram has: the summary's rows, then the stages of config.yaml without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from jaxdistill.report.columns import Column
from jaxdistill.report.diagram import Node, columns
from jaxdistill.report.table import Row, compact, measures_of_rows, short_name


def chain_nodes(rows: Sequence[Row], config: str) -> list[Node]:
    """Nodes in run order.

    Args:
      rows: from `summary_rows`.
      config: text of the run's config.yaml; empty if there is none.

    Returns:
      a node per row and per stage to come. A *control* is a stage from which nobody learns and whose shape is also
      that of a stage deeper in the chain.
    """
    headline = measures_of_rows(rows).headline
    nodes = [
        Node(
            name=row.name,
            label=short_name(row.name),
            kind="given" if row.given else "stage",
            lines=tuple(line for line in (_size(row), _headline(row, headline)) if line),
            teachers=row.teachers,
            title=f"{row.name}: {row.architecture}" if row.architecture else row.name,
        )
        for row in rows
    ]
    known = {row.name for row in rows}
    nodes += [
        Node(name, name, "pending", ("not finished",), teachers)
        for name, teachers in _configured(config).items()
        if name not in known
    ]
    nodes = [replace(node, teachers=_named(node.teachers, {node.name for node in nodes})) for node in nodes]
    controls = _controls(nodes, {row.name: row.architecture for row in rows if not row.given})
    return [replace(node, kind="control") if node.name in controls else node for node in nodes]


def _named(teachers: Sequence[str], names: set[str]) -> tuple[str, ...]:
    """Teachers as nodes are called: `STAGE/seed-K` of a repeated stage is the stage's node."""
    return tuple(dict.fromkeys(name if name in names else name.partition("/seed-")[0] for name in teachers))


def _controls(nodes: Sequence[Node], shapes: Mapping[str, str]) -> set[str]:
    depth = columns(nodes)
    taught = {teacher for node in nodes for teacher in node.teachers}
    return {
        name
        for name, shape in shapes.items()
        if shape
        and name not in taught
        and any(other != name and shapes[other] == shape and depth[other] > depth[name] for other in shapes)
    }


def _size(row: Row) -> str:
    seeds = f" × {len(row.members)} seeds" if len(row.members) > 1 else ""
    return f"{compact(row.parameters)} parameters{seeds}" if row.parameters else seeds.strip()


def _headline(row: Row, column: Column) -> str:
    number = column.text(row.quality.get("validation"))
    return f"{column.title} {number}" if number else ""


def _configured(config: str) -> dict[str, tuple[str, ...]]:
    """Teachers of every stage of a config; nothing of one that cannot be read, since the report must still appear."""
    try:
        stages = (yaml.safe_load(config) or {}).get("stages") or []
        named = [stage for stage in stages if isinstance(stage, dict) and stage.get("name")]
    except (yaml.YAMLError, AttributeError, TypeError):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for stage in named:
        teacher = stage.get("teacher", "previous")
        if teacher == "previous":
            teacher = list(found)[-1] if found else None
        teachers = teacher if isinstance(teacher, list) else [] if teacher is None else [teacher]
        found[str(stage["name"])] = tuple(_teacher_name(item) for item in teachers)
    return found


def _teacher_name(teacher: Any) -> str:
    if isinstance(teacher, dict):
        return str(next((teacher[key] for key in ("stage", "pretrained", "asset") if teacher.get(key)), "?"))
    return str(teacher)
