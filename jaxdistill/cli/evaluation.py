"""`evaluate`: which data, which models, and the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdistill import models
from jaxdistill.cli.options import refuse_options
from jaxdistill.config import build_chain, load_run
from jaxdistill.config.data_schema import PACKINGS, DataConfig, PromptConfig, SourceConfig
from jaxdistill.data.questions import load_questions
from jaxdistill.data.tagged import load_tagged
from jaxdistill.errors import DataError
from jaxdistill.inference import (
    Classifier,
    LanguageModel,
    MaskedLanguageModel,
    QuestionAnswerer,
    TokenClassifier,
    evaluate,
    evaluate_answering,
    evaluate_on_text,
    evaluate_tagging,
    evaluation_rows,
    evaluation_split,
    task_of,
)
from jaxdistill.report.columns import decimals, perplexity
from jaxdistill.report.table import byte_size
from jaxdistill.run_directory import config_path, resolve_model, stage_of
from jaxdistill.train.answers import AnswerConfig

if TYPE_CHECKING:
    from rich.console import Console

_METRICS = (
    ("perplexity", "perplexity", perplexity),
    ("pseudo_perplexity", "pseudo-perplexity", perplexity),
    ("accuracy", "accuracy", decimals),
    ("exact_match", "exact match", decimals),
    ("precision", "precision", decimals),
    ("recall", "recall", decimals),
    ("f1", "F1", decimals),
    ("loss", "loss", decimals),
    ("teacher_accuracy", "teacher's accuracy", decimals),
    ("teacher_f1", "teacher's F1", decimals),
    ("teacher_perplexity", "teacher's perplexity", perplexity),
    ("teacher_pseudo_perplexity", "teacher's pseudo-perplexity", perplexity),
    ("retention", "retention", "{:.1%}".format),
    ("agreement", "agreement with teacher", decimals),
    ("kl", "KL(teacher ‖ model)", decimals),
)
_LONGEST = 1024
"""Tokens of a sequence of a file's text when nobody says: a model may have positions for more than memory has."""


@dataclass(frozen=True)
class Options:
    """What the command was asked for, under the names of its options."""

    model: str
    data: Path | None = None
    config: Path | None = None
    split: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    label_names: tuple[str, ...] | None = None
    skip_bad_rows: bool = False
    teacher: str | None = None
    revision: str | None = None
    batch_size: int | None = None
    max_length: int | None = None
    truncate: bool = False


def evaluate_model(options: Options) -> dict[str, Any]:
    """Load, evaluate, and gather what was measured.

    Raises:
      UserError: options that do not go together, or anything wrong with model or data.
      ExternalError: an outside resource failed.
    """
    directory = resolve_model(options.model)
    task = task_of(directory, revision=options.revision)
    labelling = {"--label": options.label, "--label-names": options.label_names, "--truncate": options.truncate}
    match task:
        case "causal_lm" | "masked_lm":
            refuse_options(labelling, f"{options.model} is a language model")
            measure = partial(_on_text, kind=LanguageModel if task == "causal_lm" else MaskedLanguageModel)
        case "question_answering":
            named = {"--text": options.text, **labelling}
            refuse_options(named, f"{options.model} answers questions, and reads question, context and answers")
            measure = _on_questions
        case "token_classification":
            measure = _on_tags
        case _:
            measure = _on_labels
    measured = measure(options, directory, _data_config(options, directory, task))
    return {"model": options.model, "teacher": options.teacher, **measured}


def _on_labels(options: Options, directory: str, config: DataConfig) -> dict[str, Any]:
    """What a classifier is worth on labelled rows."""
    rows, split = evaluation_rows(config, options.split)
    settings = _cutting(options, config)
    classifier = Classifier(directory, revision=options.revision, **settings)
    teacher = None if options.teacher is None else Classifier(resolve_model(options.teacher), **settings)
    names = options.label_names
    metrics = evaluate(classifier, rows, data_names=config.label_names, label_names=names, teacher=teacher)
    return _described(options, rows, split, classifier.params, metrics)


def _on_tags(options: Options, directory: str, config: DataConfig) -> dict[str, Any]:
    """What a token classifier is worth on sentences with tags."""
    rows, split = evaluation_rows(config, options.split, load=load_tagged)
    settings = _cutting(options, config)
    tagger = TokenClassifier(directory, revision=options.revision, **settings)
    teacher = None if options.teacher is None else TokenClassifier(resolve_model(options.teacher), **settings)
    names = options.label_names
    metrics = evaluate_tagging(tagger, rows, data_names=config.label_names, label_names=names, teacher=teacher)
    return _described(options, rows, split, tagger.params, metrics)


def _on_questions(options: Options, directory: str, config: DataConfig) -> dict[str, Any]:
    """What answers are worth; "no answer" may be one where the configuration, or else the data, has questions of it."""
    rows, split = evaluation_rows(config, options.split, load=load_questions)
    settings: dict[str, Any] = {
        "batch_size": options.batch_size or QuestionAnswerer.BATCH_SIZE,
        "max_length": options.max_length or config.max_length,
        "doc_stride": None if options.data else config.doc_stride,
    }
    answerer = QuestionAnswerer(directory, revision=options.revision, **settings)
    teacher = None if options.teacher is None else QuestionAnswerer(resolve_model(options.teacher), **settings)
    threshold = config.null_threshold
    if threshold is None and rows.unanswerable:
        threshold = 0.0
    chosen = AnswerConfig(config.n_best, config.max_answer_length, threshold)
    metrics = evaluate_answering(answerer, rows, chosen, teacher=teacher)
    return _described(options, rows, split, answerer.params, metrics)


def _cutting(options: Options, config: DataConfig) -> dict[str, Any]:
    """How texts are batched and cut."""
    return {
        "batch_size": options.batch_size or Classifier.BATCH_SIZE,
        "max_length": options.max_length or config.max_length,
        # As in a run: a maximum length that is written in the configuration says that longer texts are cut to it.
        "truncate": options.truncate or (config.max_length is not None if config.truncate is None else config.truncate),
    }


def _described(options: Options, rows: Any, split: str, params: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """What was measured, of what, on what."""
    return {
        "data": rows.source,
        "split": None if options.data else split,
        "examples": len(rows),
        "skipped_rows": rows.skipped,
        **_size(params),
        **metrics,
    }


def _on_text(
    options: Options, directory: str, config: DataConfig, *, kind: type[LanguageModel | MaskedLanguageModel]
) -> dict[str, Any]:
    """What a language model is worth on text."""
    settings: dict[str, Any] = {
        "batch_size": options.batch_size or LanguageModel.BATCH_SIZE,
        "max_length": options.max_length or config.max_length,
    }
    model = kind(directory, revision=options.revision, **settings)
    teacher = None if options.teacher is None else kind(resolve_model(options.teacher), **settings)
    length = min(each.max_length for each in (model, teacher) if each is not None)
    if options.data is not None and settings["max_length"] is None:
        length = min(length, _LONGEST)
    text, split = evaluation_split(config, options.split, model.tokenizer, sequence_length=length)
    metrics = evaluate_on_text(model, text, teacher=teacher)
    described = text.describe()
    return {
        "data": text.source,
        "split": None if options.data else split,
        "documents": described["documents"],
        "skipped_rows": described["skipped"],
        "max_length": length,
        **_size(model.params),
        **metrics,
        **{name: round(metrics[name]) for name in ("tokens", "masked_tokens") if name in metrics},
    }


def _size(params: Any) -> dict[str, int]:
    return {"parameters": models.parameter_count(params), "bytes": models.parameter_bytes(params)}


def print_evaluation(result: dict[str, Any], console: Console) -> None:
    """The measured numbers as a small table."""
    from rich.table import Table
    from rich.text import Text

    split = f" ({result['split']})" if result["split"] else ""
    skipped = f", {result['skipped_rows']:,} bad rows left out" if result["skipped_rows"] else ""
    console.print(Text(f"{result['model']} on {result['data']}{split}: {_amount(result)}{skipped}"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{result['parameters']:,} ({byte_size(result['bytes'])})")
    for key, title, write in _METRICS:
        if key in result:
            table.add_row(title, write(result[key]))
    console.print(table)


def _amount(result: dict[str, Any]) -> str:
    """How much data there was."""
    if "examples" in result:
        return f"{result['examples']:,} examples"
    documents = f" of {result['documents']:,} documents" if result["documents"] is not None else ""
    counted = "tokens" if "tokens" in result else "masked_tokens"
    return f"{result[counted]:,} {counted.replace('_', ' ')}{documents} in sequences of {result['max_length']:,}"


def _data_config(options: Options, directory: str, task: str) -> DataConfig:
    """The data to evaluate on: a file, a configuration's, or that of the run the model is a stage of."""
    if options.data is not None:
        chosen = _file_config(options, options.data, task)
    else:
        if options.text or options.label:
            raise DataError("--text and --label name columns of --data FILE; a configuration names its own")
        if options.split not in (None, "validation", "test"):
            raise DataError(f"--split is {options.split!r}; expected validation or test")
        chosen = load_run(options.config).data if options.config is not None else _run_data(Path(directory))
        if chosen.task != task:
            raise DataError(
                f"{options.config or options.model}: its data is for {chosen.task}, and {options.model} does {task}; "
                "give --data FILE or another --config"
            )
    return replace(chosen, on_bad_row="skip") if options.skip_bad_rows else chosen


def _file_config(options: Options, path: Path, task: str) -> DataConfig:
    """`--data` with the columns that were named."""
    if options.config is not None or options.split is not None:
        kind = "file" if task in PACKINGS else "labelled file"
        raise DataError(f"--data is one {kind}; --config and --split choose another kind of data: leave them out")
    chosen = DataConfig(test=SourceConfig(path=str(path)))
    match task:
        case "question_answering":
            return replace(chosen, task="question_answering")
        case "token_classification":
            return _tagged_config(options, chosen)
    columns, label = options.text or chosen.columns, options.label or chosen.label
    if task == "masked_lm":
        if len(columns) > 1:
            raise DataError(f"--text is {', '.join(columns)}; expected one text column")
        return replace(chosen, task="masked_lm", text=columns)
    if task == "causal_lm":
        if len(columns) > 2 or len({*columns}) < len(columns):
            raise DataError(
                f"--text is {', '.join(columns)}; expected one text column, or two for prompt and completion"
            )
        text = PromptConfig(*columns) if len(columns) == 2 else columns
        return replace(chosen, task="causal_lm", text=text)
    if len(columns) > 2 or len({*columns, label}) <= len(columns):
        raise DataError(
            f"--text is {', '.join(columns)} and --label {label}; expected one text column, or two for a pair, and "
            "another one for the label"
        )
    return replace(chosen, text=columns, label=label)


def _tagged_config(options: Options, chosen: DataConfig) -> DataConfig:
    """One column of words and one of tags."""
    tokens, *more = options.text or (chosen.tokens,)
    tags = options.label or chosen.tags
    if more or tags == tokens:
        given = ", ".join([tokens, *more])
        raise DataError(f"--text is {given} and --label {tags}; expected one column of words, and another one of tags")
    return replace(chosen, task="token_classification", tokens=tokens, tags=tags)


def _run_data(directory: Path) -> DataConfig:
    """The data of the stage whose student this directory is."""
    found = stage_of(directory)
    if found is None:
        raise DataError(
            f"{directory}: not a stage of a run, so its data is not known; give --data FILE or --config CONFIG"
        )
    run, key = found
    return build_chain(load_run(config_path(run))).stage(key).data
