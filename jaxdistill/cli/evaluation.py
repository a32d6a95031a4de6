"""`evaluate`: which data, which models, and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdistill import models
from jaxdistill.config import build_chain, load_run
from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.errors import DataError
from jaxdistill.inference import Classifier, evaluate, evaluation_rows
from jaxdistill.report.columns import decimals
from jaxdistill.report.table import byte_size
from jaxdistill.run_directory import config_path, is_run_directory, resolve_model

if TYPE_CHECKING:
    from rich.console import Console

_METRICS = (
    ("accuracy", "accuracy", decimals),
    ("f1", "F1", decimals),
    ("loss", "loss", decimals),
    ("teacher_accuracy", "teacher's accuracy", decimals),
    ("retention", "retention", "{:.1%}".format),
    ("agreement", "agreement with teacher", decimals),
    ("kl", "KL(teacher ‖ model)", decimals),
)


def evaluate_model(
    model: str,
    *,
    data: Path | None,
    config: Path | None,
    split: str | None,
    text: tuple[str, ...],
    label: str | None,
    label_names: tuple[str, ...] | None,
    skip_bad_rows: bool,
    teacher: str | None,
    revision: str | None,
    batch_size: int,
    max_length: int | None,
    truncate: bool,
) -> dict[str, Any]:
    """Load, evaluate, and gather what was measured; arguments as the command's options.

    Raises:
      UserError: options that do not go together, or anything wrong with model or data.
      ExternalError: an outside resource failed.
    """
    directory = resolve_model(model)
    chosen = _data_config(directory, data=data, config=config, split=split, text=text, label=label)
    if skip_bad_rows:
        chosen = replace(chosen, on_bad_row="skip")
    rows, read_split = evaluation_rows(chosen, split)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "max_length": max_length or chosen.max_length,
        # As in a run: a maximum length that is written in the configuration says that longer texts are cut to it.
        "truncate": truncate or (chosen.max_length is not None if chosen.truncate is None else chosen.truncate),
    }
    classifier = Classifier(directory, revision=revision, **settings)
    other = None if teacher is None else Classifier(resolve_model(teacher), **settings)
    metrics = evaluate(classifier, rows, data_names=chosen.label_names, label_names=label_names, teacher=other)
    return {
        "model": model,
        "teacher": teacher,
        "data": rows.source,
        "split": None if data else read_split,
        "examples": len(rows),
        "skipped_rows": rows.skipped,
        "parameters": models.parameter_count(classifier.params),
        "bytes": models.parameter_bytes(classifier.params),
        **metrics,
    }


def print_evaluation(result: dict[str, Any], console: Console) -> None:
    """The measured numbers as a small table."""
    from rich.table import Table
    from rich.text import Text

    split = f" ({result['split']})" if result["split"] else ""
    skipped = f", {result['skipped_rows']:,} bad rows left out" if result["skipped_rows"] else ""
    console.print(Text(f"{result['model']} on {result['data']}{split}: {result['examples']:,} examples{skipped}"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{result['parameters']:,} ({byte_size(result['bytes'])})")
    for key, title, write in _METRICS:
        if key in result:
            table.add_row(title, write(result[key]))
    console.print(table)


def _data_config(
    directory: str,
    *,
    data: Path | None,
    config: Path | None,
    split: str | None,
    text: tuple[str, ...],
    label: str | None,
) -> DataConfig:
    """The data to evaluate on: a file, a configuration's, or that of the run the model is a stage of."""
    if data is not None:
        if config is not None or split is not None:
            raise DataError(
                "--data is one labelled file; --config and --split choose another kind of data: leave them out"
            )
        chosen = DataConfig(test=SourceConfig(path=str(data)))
        chosen = replace(chosen, text=text or chosen.text, label=label or chosen.label)
        if len(chosen.columns) > 2 or len({*chosen.columns, chosen.label}) <= len(chosen.columns):
            raise DataError(
                f"--text is {', '.join(chosen.columns)} and --label {chosen.label}; expected one text column, or two "
                "for a pair, and another one for the label"
            )
        return chosen
    if text or label:
        raise DataError("--text and --label name columns of --data FILE; a configuration names its own")
    if split not in (None, "validation", "test"):
        raise DataError(f"--split is {split!r}; expected validation or test")
    if config is not None:
        return load_run(config).data
    return _run_data(Path(directory))


def _run_data(directory: Path) -> DataConfig:
    """The data of the stage whose student this directory is."""
    for run in directory.resolve().parents:
        if is_run_directory(run):
            key = str(directory.resolve().relative_to(run / "stages").parent)
            return build_chain(load_run(config_path(run))).stage(key).data
    raise DataError(f"{directory}: not a stage of a run, so its data is not known; give --data FILE or --config CONFIG")
