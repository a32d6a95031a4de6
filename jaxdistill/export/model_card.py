"""The README.md of an exported model: what it is, where it comes from, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = (("accuracy", ".4f"), ("f1", ".4f"), ("agreement", ".4f"), ("kl", ".3g"))


def model_card(summary: Mapping[str, Any], key: str, *, name: str, labels: Sequence[str] | None, loads: bool) -> str:
    """Markdown with the metadata that model hubs read.

    Args:
      summary: of the run, or empty for a model that is no run's.
      key: the stage (`STAGE` or `STAGE/seed-K`).
      name: title.
      labels: names of the classes, if they have any.
      loads: whether `transformers` loads the directory.
    """
    chain = _lineage(summary, key)
    parts = [_front_matter(loads), f"# {name}\n"]
    if chain:
        parts += [_origin(summary, chain, loads), _results(chain)]
    if labels:
        parts.append("Labels, in order: " + ", ".join(f"`{label}`" for label in labels) + ".\n")
    parts.append(
        _use(name) if loads else "A factorised BertHash model: `jaxdistill predict DIR` and `jaxdistill` load it.\n"
    )
    return "\n".join(parts)


def _lineage(summary: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The stage and everything it was distilled from, teachers before students."""
    rows = {row["key"]: row for row in summary.get("stages") or ()}
    found: dict[str, Mapping[str, Any]] = {}

    def visit(name: str) -> None:
        if name in rows and name not in found:
            for teacher in rows[name].get("teacher") or ():
                visit(teacher)
            found[name] = rows[name]

    visit(key)
    return list(found.values())


def _front_matter(loads: bool) -> str:
    library = "transformers" if loads else "jaxdistill"
    tags = "".join(f"- {tag}\n" for tag in ("text-classification", "knowledge-distillation", "jaxdistill"))
    return f"---\nlibrary_name: {library}\npipeline_tag: text-classification\ntags:\n{tags}---\n"


def _origin(summary: Mapping[str, Any], chain: Sequence[Mapping[str, Any]], loads: bool) -> str:
    stage = chain[-1]
    taught = " and ".join(f"`{_short(name)}`" for name in stage.get("teacher") or ())
    how = f"distilled from {taught}" if taught else "trained on labels alone"
    train = stage.get("train") or {}
    trained = f" in {train['steps']:,} steps on {train['examples']:,} examples" if train.get("steps") else ""
    shape = str(stage.get("architecture") or "A model")
    folded = " Its word embedding is multiplied out here into an ordinary BERT's, which has more parameters."
    return (
        f"{shape}, {stage['parameters']:,} parameters, {how}{trained}: stage `{stage['key']}` of the run "
        f"`{summary.get('name')}`, with jaxdistill {summary.get('jaxdistill')}."
        f"{folded if loads and shape.startswith('bert_hash') else ''}\n"
    )


def _results(chain: Sequence[Mapping[str, Any]]) -> str:
    """One row per model and split, so that what chose the checkpoint is never taken for a test."""
    lines = [
        "| model | learned from | parameters | split | accuracy | F1 | agreement with its teacher | KL |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in chain:
        source = "given" if row.get("given") else ", ".join(map(_short, row.get("teacher") or ())) or "labels"
        for split, metrics in (row.get("eval") or {}).items():
            numbers = [
                f"{metrics[column]:{form}}" if metrics.get(column) is not None else "" for column, form in _COLUMNS
            ]
            cells = [_short(row["key"]), source, f"{row['parameters']:,}", split, *numbers]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    note = "Checkpoints were chosen on validation; test, where there is one, was only reported.\n"
    return "\n".join(lines) + f"\n\n{note}"


def _short(name: str) -> str:
    """A teacher given by its path is called by the last part of it."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith((".", "/", "~")) else name


def _use(name: str) -> str:
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model="{name}")\n```\n'
    )
