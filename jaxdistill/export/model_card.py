"""The README.md of an exported model: what it is, where it comes from, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Kind:
    """What a card says of models of one task. columns: (metric, title, format); use: code, with the name's place."""

    pipeline: str
    columns: tuple[tuple[str, str, str], ...]
    trained_on: str
    counted: str
    use: str


_CLOSENESS = (("agreement", "agreement with its teacher", ".4f"), ("kl", "KL", ".3g"))
_KINDS = {
    "classification": _Kind(
        pipeline="text-classification",
        columns=(("accuracy", "accuracy", ".4f"), ("f1", "F1", ".4f"), *_CLOSENESS),
        trained_on="labels",
        counted="examples",
        use="""\
from transformers import pipeline

classify = pipeline("text-classification", model="{name}")
""",
    ),
    "token_classification": _Kind(
        pipeline="token-classification",
        columns=(
            ("f1", "entity F1", ".4f"),
            ("precision", "precision", ".4f"),
            ("recall", "recall", ".4f"),
            ("accuracy", "word accuracy", ".4f"),
            *_CLOSENESS,
        ),
        trained_on="labels",
        counted="examples",
        use="""\
from transformers import pipeline

tag = pipeline("token-classification", model="{name}", aggregation_strategy="first")
""",
    ),
    "question_answering": _Kind(
        pipeline="question-answering",
        columns=(("f1", "F1", ".4f"), ("exact_match", "exact match", ".4f"), *_CLOSENESS),
        trained_on="labels",
        counted="examples",
        use="""\
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForQuestionAnswering.from_pretrained("{name}")
inputs = tokenizer("Who wrote it?", "Ann wrote it.", return_tensors="pt")
output = model(**inputs)  # start_logits and end_logits
""",
    ),
    "masked_lm": _Kind(
        pipeline="fill-mask",
        columns=(
            ("accuracy", "masked accuracy", ".4f"),
            ("pseudo_perplexity", "pseudo-perplexity", ".4g"),
            *_CLOSENESS,
        ),
        trained_on="text",
        counted="tokens",
        use="""\
from transformers import pipeline

fill = pipeline("fill-mask", model="{name}")
print(fill(f"Paris is the {{fill.tokenizer.mask_token}} of France."))
""",
    ),
    "causal_lm": _Kind(
        pipeline="text-generation",
        columns=(("perplexity", "perplexity", ".4g"), ("accuracy", "next-token accuracy", ".4f"), *_CLOSENESS),
        trained_on="text",
        counted="tokens",
        use="""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
""",
    ),
}


def model_card(
    summary: Mapping[str, Any], key: str, *, name: str, task: str, labels: Sequence[str] | None, loads: bool
) -> str:
    """Markdown with the metadata that model hubs read.

    Args:
      summary: of the run, or empty for a model that is no run's.
      key: the stage (`STAGE` or `STAGE/seed-K`).
      name: title.
      task: what the model does.
      labels: names of the classes, if they have any.
      loads: whether `transformers` loads the directory.
    """
    kind, chain = _KINDS[task], _lineage(summary, key)
    parts = [_front_matter(kind, loads), f"# {name}\n"]
    if chain:
        parts += [_origin(summary, chain, kind, loads), _results(chain, kind)]
    if labels:
        parts.append("Labels, in order: " + ", ".join(f"`{label}`" for label in labels) + ".\n")
    parts.append(
        f"```python\n{kind.use.format(name=name)}```\n"
        if loads
        else "A factorised BertHash model: `jaxdistill predict DIR` and `jaxdistill` load it.\n"
    )
    return "\n".join(parts)


def _lineage(summary: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The stage, its phases before, and everything it was distilled from, teachers before students."""
    rows = {row["key"]: row for row in summary.get("stages") or ()}
    found: dict[str, Mapping[str, Any]] = {}

    def visit(name: str) -> None:
        if name in rows and name not in found:
            for other in (*(rows[name].get("teacher") or ()), rows[name].get("begins")):
                visit(other)
            found[name] = rows[name]

    visit(key)
    return list(found.values())


def _front_matter(kind: _Kind, loads: bool) -> str:
    library = "transformers" if loads else "jaxdistill"
    tags = "".join(f"- {tag}\n" for tag in (kind.pipeline, "knowledge-distillation", "jaxdistill"))
    return f"---\nlibrary_name: {library}\npipeline_tag: {kind.pipeline}\ntags:\n{tags}---\n"


def _origin(summary: Mapping[str, Any], chain: Sequence[Mapping[str, Any]], kind: _Kind, loads: bool) -> str:
    stage = chain[-1]
    taught = " and ".join(f"`{_short(name)}`" for name in stage.get("teacher") or ())
    how = f"distilled from {taught}" if taught else f"trained on {kind.trained_on} alone"
    train = stage.get("train") or {}
    amount = f"{train['steps']:,} steps on {train[kind.counted]:,} {kind.counted}" if train.get("steps") else ""
    trained = f" in {amount}" if amount else ""
    shape = str(stage.get("architecture") or "A model")
    folded = " Its word embedding is multiplied out here into an ordinary BERT's, which has more parameters."
    return (
        f"{shape}, {stage['parameters']:,} parameters, {how}{trained}: stage `{stage['key']}` of the run "
        f"`{summary.get('name')}`, with jaxdistill {summary.get('jaxdistill')}."
        f"{folded if loads and shape.startswith('bert_hash') else ''}\n"
    )


def _results(chain: Sequence[Mapping[str, Any]], kind: _Kind) -> str:
    """One row per model and split, so that what chose the checkpoint is never taken for a test."""
    titles = ["model", "learned from", "parameters", "split", *(title for _, title, _ in kind.columns)]
    lines = ["| " + " | ".join(titles) + " |", "| " + " | ".join(["---"] * len(titles)) + " |"]
    for row in chain:
        source = "given" if row.get("given") else ", ".join(map(_short, row.get("teacher") or ())) or kind.trained_on
        for split, metrics in (row.get("eval") or {}).items():
            numbers = [
                f"{metrics[metric]:{form}}" if metrics.get(metric) is not None else ""
                for metric, _, form in kind.columns
            ]
            cells = [_short(row["key"]), source, f"{row['parameters']:,}", split, *numbers]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    note = "Checkpoints were chosen on validation; test, where there is one, was only reported.\n"
    return "\n".join(lines) + f"\n\n{note}"


def _short(name: str) -> str:
    """A teacher given by its path is called by the last part of it."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith((".", "/", "~")) else name
