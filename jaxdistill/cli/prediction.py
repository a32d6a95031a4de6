"""`predict`: lines in, labels, tags, answers or continuations out, in chunks and in order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO, TypeVar

from jaxdistill.cli.options import refuse_options
from jaxdistill.data.questions import QuestionRows
from jaxdistill.data.readers import is_unicode
from jaxdistill.errors import DataError, ModelError
from jaxdistill.inference import (
    Classifier,
    Continuation,
    LanguageModel,
    Prediction,
    QuestionAnswerer,
    Tagged,
    TokenClassifier,
    asked,
    sentences,
    task_of,
    unlabelled_rows,
)
from jaxdistill.run_directory import resolve_model
from jaxdistill.train.answers import AnswerConfig, FoundAnswer

Line = tuple[int, str]
_NEW_TOKENS = 64
_Answer = TypeVar("_Answer")

_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""What JSON leaves as it is and many readers of lines take for the end of one."""


@dataclass(frozen=True)
class Options:
    """What the command was asked for, under the names of its options (`every`: --all)."""

    model: str
    texts: tuple[str, ...] = ()
    pair: bool = False
    every: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    null_threshold: float | None = None
    revision: str | None = None
    batch_size: int | None = None
    max_length: int | None = None
    truncate: bool = False
    as_json: bool = False


def answers(options: Options, stdin: TextIO) -> Iterator[str]:
    """A line of output for each text, or each line of `stdin` if there are none.

    Raises:
      UserError: an option that means nothing for this model, or anything wrong with it or the texts.
      ExternalError: an outside resource failed.
    """
    source = resolve_model(options.model)
    lines = argument_lines(options.texts) if options.texts else stdin_lines(stdin.buffer)
    origin = ("arguments", "text") if options.texts else ("stdin", "line")
    singly = not options.texts and stdin.isatty()
    task = task_of(source, revision=options.revision)
    if task == "masked_lm":
        raise ModelError(
            f"{options.model} is a masked language model, which answers nothing by itself; fine-tune it "
            "(`jaxdistill run`, student: {pretrained: …}), or measure it with `jaxdistill evaluate`"
        )
    refuse_options(_foreign(options, task), f"{options.model} is {_WHAT[task]}")
    answer = {
        "causal_lm": _continued,
        "token_classification": _tagged,
        "question_answering": _found,
        "classification": _labelled,
    }
    return answer[task](options, source, lines, origin, singly=singly)


_WHAT = {
    "causal_lm": "a language model",
    "token_classification": "a token classifier",
    "question_answering": "a model that answers questions",
    "classification": "a classifier",
}


def _foreign(options: Options, task: str) -> dict[str, object]:
    """The options that only models for other tasks have."""
    owners: list[tuple[tuple[str, ...], dict[str, object]]] = [
        (("classification",), {"--pair": options.pair, "--all": options.every}),
        (("classification", "token_classification"), {"--truncate": options.truncate}),
        (("question_answering",), {"--null-threshold": options.null_threshold}),
        (
            ("causal_lm",),
            {
                "--max-new-tokens": options.max_new_tokens,
                "--temperature": options.temperature,
                "--seed": options.seed,
            },
        ),
    ]
    return {name: value for tasks, own in owners if task not in tasks for name, value in own.items()}


def _labelled(
    options: Options, source: str, lines: Iterable[Line], origin: tuple[str, str], *, singly: bool
) -> Iterator[str]:
    classifier = Classifier(
        source,
        revision=options.revision,
        batch_size=options.batch_size or Classifier.BATCH_SIZE,
        max_length=options.max_length,
        truncate=options.truncate,
    )
    at_once = 1 if singly else 16 * classifier.batch_size
    found = predict_lines(classifier, lines, source=origin[0], unit=origin[1], pair=options.pair, at_once=at_once)
    for text, prediction in found:
        yield format_line(text, prediction, as_json=options.as_json, every=options.every)


def _tagged(
    options: Options, source: str, lines: Iterable[Line], origin: tuple[str, str], *, singly: bool
) -> Iterator[str]:
    tagger = TokenClassifier(
        source,
        revision=options.revision,
        batch_size=options.batch_size or TokenClassifier.BATCH_SIZE,
        max_length=options.max_length,
        truncate=options.truncate,
    )

    def tag(written: Sequence[Line]) -> list[Tagged]:
        return tagger.predict(sentences(written, source=origin[0], unit=origin[1]))

    for text, tagged in _answered(lines, tag, 1 if singly else 16 * tagger.batch_size):
        yield format_tagged(text, tagged, as_json=options.as_json)


def _found(
    options: Options, source: str, lines: Iterable[Line], origin: tuple[str, str], *, singly: bool
) -> Iterator[str]:
    answerer = QuestionAnswerer(
        source,
        revision=options.revision,
        batch_size=options.batch_size or QuestionAnswerer.BATCH_SIZE,
        max_length=options.max_length,
    )
    config = AnswerConfig(null_threshold=options.null_threshold)

    def find(written: Sequence[Line]) -> list[tuple[QuestionRows, FoundAnswer]]:
        rows = asked(written, source=origin[0], unit=origin[1])
        return [(rows.take([place]), answer) for place, answer in enumerate(answerer.predict(rows, config))]

    for _, found in _answered(lines, find, 1 if singly else answerer.batch_size):
        yield format_answer(found, as_json=options.as_json)


def _continued(
    options: Options, source: str, lines: Iterable[Line], origin: tuple[str, str], *, singly: bool
) -> Iterator[str]:
    model = LanguageModel(
        source,
        revision=options.revision,
        batch_size=options.batch_size or LanguageModel.BATCH_SIZE,
        max_length=options.max_length,
    )
    found = continue_lines(
        model,
        lines,
        source=origin[0],
        unit=origin[1],
        at_once=1 if singly else model.batch_size,
        max_new_tokens=options.max_new_tokens or _NEW_TOKENS,
        temperature=options.temperature or 0.0,
        seed=options.seed or 0,
    )
    for text, continuation in found:
        yield format_continuation(text, continuation, as_json=options.as_json)


def argument_lines(texts: Sequence[str]) -> Iterator[Line]:
    """Texts of the command line, numbered from 1.

    Raises:
      DataError: a text that is not UTF-8.
    """
    for number, text in enumerate(texts, start=1):
        if not is_unicode(text):
            raise DataError(f"arguments, text {number}: not UTF-8; convert it first")
        yield number, text


def stdin_lines(stream: BinaryIO) -> Iterator[Line]:
    """Lines of a stream without their ends and a byte order mark, numbered from 1.

    Raises:
      DataError: a line that is not UTF-8.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"stdin, line {number}: not UTF-8 ({error.reason}); convert it first") from None


def predict_lines(
    classifier: Classifier, lines: Iterable[Line], *, source: str, unit: str, pair: bool, at_once: int
) -> Iterator[tuple[str, Prediction | None]]:
    """Every line with its prediction, None for a blank one; `at_once` lines are read before the first is answered."""

    def predict(written: Sequence[Line]) -> list[Prediction]:
        rows = unlabelled_rows(written, source=source, unit=unit, pair=pair)
        return classifier.predictions(classifier.row_logits(rows))

    return _answered(lines, predict, at_once)


def continue_lines(
    model: LanguageModel,
    lines: Iterable[Line],
    *,
    source: str,
    unit: str,
    at_once: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[tuple[str, Continuation | None]]:
    """Every line with its continuation, None for a blank one; `at_once` as of `predict_lines`."""

    def go_on(written: Sequence[Line]) -> list[Continuation]:
        rows = unlabelled_rows(written, source=source, unit=unit, pair=False)
        return model.continuations(rows, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    return _answered(lines, go_on, at_once)


def _answered(
    lines: Iterable[Line], answer: Callable[[Sequence[Line]], list[_Answer]], at_once: int
) -> Iterator[tuple[str, _Answer | None]]:
    """Lines in their order with what is answered to those that are not blank, a chunk after the other."""
    lines = iter(lines)
    while chunk := list(itertools.islice(lines, at_once)):
        answers = iter(answer([line for line in chunk if line[1].strip()]))
        for _, text in chunk:
            yield text, (next(answers) if text.strip() else None)


def format_line(text: str, prediction: Prediction | None, *, as_json: bool, every: bool) -> str:
    """One line of output: label, probability, with `every` name=probability of all labels, and the text."""
    if as_json:
        found = {"label": prediction and prediction.label, "probability": prediction and prediction.probability}
        if every:
            found["probabilities"] = prediction and prediction.probabilities
        return _json_line({"text": text, **found})
    if prediction is None:
        return ""
    fields = [prediction.label, f"{prediction.probability:.4f}"]
    if every:
        fields.append(" ".join(f"{name}={value:.4f}" for name, value in prediction.probabilities.items()))
    return "\t".join([*fields, " ".join(text.splitlines())])


def format_continuation(text: str, continuation: Continuation | None, *, as_json: bool) -> str:
    """One line of output: the text and its continuation, whatever ends a line in them made a space."""
    if as_json:
        found = {
            "continuation": continuation and continuation.text,
            "tokens": continuation and len(continuation.token_ids),
            "finished": continuation and continuation.finished,
        }
        return _json_line({"text": text, **found})
    if continuation is None:
        return ""
    return "\t".join(" ".join(part.splitlines()) for part in (text, continuation.text))


def format_tagged(text: str, tagged: Tagged | None, *, as_json: bool) -> str:
    """A line for each word with its tag, a TAB between, and a blank one after them, as CoNLL's files have it."""
    if as_json:
        found: dict[str, Any] = {"words": None, "tags": None, "probabilities": None, "entities": None}
        if tagged is not None:
            entities = [
                {"type": kind, "text": " ".join(tagged.words[start:end]), "start": start, "end": end}
                for kind, start, end in tagged.entities
            ]
            found = {
                "words": tagged.words,
                "tags": tagged.tags,
                "probabilities": tagged.probabilities,
                "entities": entities,
            }
        return _json_line({"text": text, **found})
    if tagged is None:
        return ""
    return "".join(f"{word}\t{tag}\n" for word, tag in zip(tagged.words, tagged.tags, strict=True))


def format_answer(found: tuple[QuestionRows, FoundAnswer] | None, *, as_json: bool) -> str:
    """One line of output: the answer, its score and the question."""
    if found is None:
        return _json_line({"answer": None}) if as_json else ""
    rows, answer = found
    if as_json:
        place = {"start": answer.start, "end": answer.end} if answer.text else {"start": None, "end": None}
        told = {"id": rows.ids[0], "question": rows.questions[0], "answer": answer.text, "score": answer.score}
        return _json_line({**told, **place})
    return "\t".join([" ".join(answer.text.split()), f"{answer.score:.4f}", " ".join(rows.questions[0].split())])


def _json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS)
