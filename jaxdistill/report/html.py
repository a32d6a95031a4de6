"""report.html: the chain, the results and the learning curves of a run in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from jaxdistill.atomic import atomic_write_text
from jaxdistill.report.chain import chain_nodes
from jaxdistill.report.chart import Series, line_chart
from jaxdistill.report.columns import Column, Estimate, Measures, measures_of
from jaxdistill.report.diagram import chain_diagram
from jaxdistill.report.inference import inference_section
from jaxdistill.report.table import (
    SPLITS,
    Row,
    byte_size,
    compact,
    measures_of_rows,
    short_name,
    summary_rows,
)
from jaxdistill.run_directory import config_path, load_summary, read_metrics, stage_keys

_LOSSES = (("loss", "loss"), ("kd", "distillation (KD)"), ("ce", "cross-entropy (CE)"))
Metrics = Mapping[str, list[dict[str, Any]]]  # stage key (STAGE or STAGE/seed-K) to rows of metrics.jsonl


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from summary.json, config.yaml and the metrics of the stages; atomic.

    A run in progress is fine: what is not there yet is left out, and stages to come are drawn as such.

    Args:
      run_dir: a run directory.

    Returns:
      the path of the report.

    Raises:
      CheckpointError: not a run directory, or an unreadable summary.
      ExternalError: the report cannot be written.
    """
    run_dir = Path(run_dir)
    summary = load_summary(run_dir)
    path = config_path(run_dir)
    config = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    metrics = {key: read_metrics(run_dir / "stages" / key) for key in stage_keys(run_dir)}
    page = _page(summary, config, metrics)
    path = run_dir / "report.html"
    atomic_write_text(path, page)
    return path


def _page(summary: Mapping[str, Any], config: str, metrics: Metrics) -> str:
    rows = summary_rows(summary)
    name = escape(str(summary.get("name") or "run"))
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    configuration = f"<details><summary>Resolved configuration</summary><pre>{escape(config)}</pre></details>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · jaxdistill</title>
<style>
{style}</style>
</head>
<body>
<h1>{name}</h1>
<p class="facts">{_facts(summary, rows)}</p>
<h2>Chain</h2>
{_chain(rows, config)}
<h2>Results</h2>
{_results(rows)}
{inference_section(rows)}
<h2>Learning curves</h2>
{_curves(rows, metrics)}
{configuration if config else ""}
</body>
</html>
"""


def _facts(summary: Mapping[str, Any], rows: Sequence[Row]) -> str:
    device = summary.get("device") or {}
    trained = [row for row in rows if not row.given]
    members = [member for row in trained for member in row.members or (row,)]
    seconds = sum(member.train["seconds"].mean for member in members if "seconds" in member.train)
    facts = [
        str(summary.get("created") or ""),
        f"jaxdistill {summary['jaxdistill']}" if summary.get("jaxdistill") else "",
        f"{device.get('count', 1)} × {device.get('kind') or device.get('platform')}" if device else "",
        f"{len(trained)} stage{'s' * (len(trained) != 1)} trained in {_duration(seconds)}" if trained else "",
    ]
    return "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _chain(rows: Sequence[Row], config: str) -> str:
    nodes = chain_nodes(rows, config)
    if not nodes:
        return '<p class="empty">No stage has finished yet.</p>'
    kinds = {node.kind for node in nodes}
    notes = ["An arrow goes from a teacher to its student."]
    notes += ["Tinted: given to the run, not trained by it."] if "given" in kinds else []
    notes += ["Dashed: a control, the same student by a shorter way."] if "control" in kinds else []
    notes += ["Dotted: not finished."] if "pending" in kinds else []
    return f'<div class="scroll chain-box">{chain_diagram(nodes)}</div>\n<p class="note">{" ".join(notes)}</p>'


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Columns under one heading. split: whose metrics they are; None for training."""

    heading: str
    columns: Sequence[Column]
    split: str | None = None

    def cells(self, row: Row) -> str:
        estimates = row.train if self.split is None else row.quality.get(self.split, {})
        return "".join(
            f"<td{_edge(index)}>{_number(column, estimates)}</td>" for index, column in enumerate(self.columns)
        )


def _results(rows: Sequence[Row]) -> str:
    """Two tables, so that each fits a screen: how good the students are; how close to their teachers, at what cost."""
    if not rows:
        return '<p class="empty">No stage has finished yet.</p>'
    splits = [split for split in SPLITS if any(row.quality.get(split) for row in rows)]
    measures = measures_of_rows(rows)
    sizes = {row.name: f'<td title="{row.parameters or 0:,}">{compact(row.parameters)}</td>' for row in rows}
    disk = {row.name: f'<td title="{row.bytes or 0:,}">{byte_size(row.bytes)}</td>' for row in rows}
    first = {row.name: _text_cell(row.source) + sizes[row.name] for row in rows}
    second = {row.name: _text_cell(row.architecture) + disk[row.name] for row in rows}
    return "\n".join(
        (
            _table(
                rows, ("learns from", "parameters"), first, [_Group(split, measures.quality, split) for split in splits]
            ),
            "<h3>Closeness to the own teacher, and cost</h3>",
            _table(
                rows,
                ("architecture", "bytes"),
                second,
                [
                    *(_Group(split, measures.closeness, split) for split in splits),
                    _Group("training", measures.training),
                ],
            ),
            _notes(rows, measures),
        )
    )


def _table(rows: Sequence[Row], titles: tuple[str, str], described: Mapping[str, str], groups: Sequence[_Group]) -> str:
    """One row per stage and, below a repeated one, one per seed. described: the two cells that say what a stage is."""
    headings = "".join(f'<th class="group" colspan="{len(group.columns)}">{group.heading}</th>' for group in groups)
    heads = "".join(
        f'<th{_edge(index)} title="{escape(column.meaning)}">{column.title}</th>'
        for group in groups
        for index, column in enumerate(group.columns)
    )
    lines = []
    for row in rows:
        name, label = escape(row.name), escape(short_name(row.name))
        numbers = "".join(group.cells(row) for group in groups)
        lines.append(
            f'<tr class="stage"><td class="first" title="{name}">{label}</td>{described[row.name]}{numbers}</tr>\n'
        )
        for member in row.members:
            numbers = "".join(group.cells(member) for group in groups)
            lines.append(
                f'<tr class="seed"><td class="first">seed {member.seed}</td><td></td><td></td>{numbers}</tr>\n'
            )
    return f"""<div class="scroll"><table>
<thead>
<tr><th class="first"></th><th colspan="2"></th>{headings}</tr>
<tr><th class="first">stage</th><th class="text">{titles[0]}</th><th>{titles[1]}</th>{heads}</tr>
</thead>
<tbody>
{"".join(lines)}</tbody>
</table></div>"""


def _text_cell(text: str) -> str:
    return f'<td class="text" title="{escape(text)}">{escape(text)}</td>'


def _edge(index: int) -> str:
    return ' class="group"' if index == 0 else ""


def _number(column: Column, estimates: Mapping[str, Estimate]) -> str:
    mean, plus_minus, deviation = column.text(estimates).partition(" ± ")
    return f'{mean}<span class="deviation"> ± {deviation}</span>' if plus_minus else mean


def _notes(rows: Sequence[Row], measures: Measures) -> str:
    meanings = "; ".join(f"{column.title}: {column.meaning}" for column in measures.evaluated)
    notes = [f"{meanings[0].upper()}{meanings[1:]}.", "Checkpoints were chosen on validation; test is only reported."]
    if any(len(row.members) > 1 for row in rows):
        notes.append("Repeated stages: mean ± sample standard deviation over seeds; the first seed is handed on.")
    return f'<p class="note">{escape(" ".join(notes))}</p>'


# --- learning curves -------------------------------------------------------------------------------------------------


def _curves(rows: Sequence[Row], metrics: Metrics) -> str:
    """A card for every stage that has logged something, in the order of the summary, its seeds likewise."""
    order = [f"{row.name}/seed-{member.seed}" for row in rows for member in row.members]
    stages: dict[str, list[str]] = {row.name: [] for row in rows}
    for key in sorted(metrics, key=lambda key: order.index(key) if key in order else len(order)):
        if metrics[key]:
            stages.setdefault(key.partition("/")[0], []).append(key)
    best = {row.name: (row.members or (row,))[0].train.get("best_step") for row in rows}
    cards = [_card(name, {key: metrics[key] for key in keys}, best.get(name)) for name, keys in stages.items() if keys]
    if not cards:
        return '<p class="empty">Nothing has been logged yet.</p>'
    return f'<div class="curves">\n{"".join(cards)}</div>'


def _card(name: str, metrics: Metrics, best: Estimate | None) -> str:
    """Loss and validation of one stage; of a repeated one, the other seeds stand faint behind the first."""
    charts = _loss_chart(name, metrics) + _validation_chart(name, metrics, best.mean if best else None)
    seeds = f' <span class="facts">({len(metrics)} seeds)</span>' if len(metrics) > 1 else ""
    return f'<section class="card"><h3>{escape(name)}{seeds}</h3><div class="pair">{charts}</div></section>\n'


def _loss_chart(name: str, metrics: Metrics) -> str:
    losses = [
        Series(title, key, _points(logged, "train", key), faint=index > 0)
        for key, title in _LOSSES
        for index, logged in enumerate(metrics.values())
    ]
    losses = [series for series in losses if any(value for _, value in series.points)]  # no teacher: KD is 0 throughout
    shown = {series.style: series.name for series in losses}
    if len(shown) == 2:  # the total repeats the only term; the term says more
        losses = [series for series in losses if series.style != "loss"]
        shown.pop("loss", None)
    chart = line_chart(losses, label=f"{name}: training loss by step", vertical="from_zero")
    return _titled("training loss", shown, chart) if chart else ""


def _validation_chart(name: str, metrics: Metrics, mark: float | None) -> str:
    """The headline of the evaluations; of a language model also its teachers' perplexity, which does not move."""
    keys = {key for logged in metrics.values() for row in logged if row.get("kind") == "validation" for key in row}
    measured = measures_of(keys).headline
    series = [
        Series(stage, measured.key, _points(logged, "validation", measured.key), dots=True, faint=index > 0)
        for index, (stage, logged) in enumerate(metrics.items())
    ]
    theirs = _points(next(iter(metrics.values())), "validation", f"teacher_{measured.key}")
    series += [Series("teacher", "teacher", theirs)] if theirs else []
    vertical = "log" if measured.key == "perplexity" else "data"
    chart = line_chart(series, label=f"{name}: validation {measured.title} by step", vertical=vertical, mark=mark)
    shown = {"teacher": "teacher"} if theirs else {}
    shown |= {"mark": "best checkpoint"} if mark is not None else {}
    return _titled(f"validation {measured.title}", shown, chart) if chart else ""


def _titled(title: str, legend: Mapping[str, str], chart: str) -> str:
    """A chart under its title and the names of its lines, by their styles."""
    names = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for style, name in legend.items())
    return f'<div><p class="legend"><b>{escape(title)}</b> &ensp;{names}</p>{chart}</div>'


def _points(logged: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    return [
        (row["step"], row[key]) for row in logged if row.get("kind") == kind and isinstance(row.get(key), int | float)
    ]
