"""What a run reads: model directories, tokenizers and labelled data, each fetched, read and tokenised once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdistill import data, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import Chain, ChainStage, GivenTeacher, ResolvedTeacher
from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.config.families import FAMILY_OF_TASK
from jaxdistill.config.model_schema import StudentConfig
from jaxdistill.data.rows import R
from jaxdistill.errors import ConfigError, DataError, ModelError
from jaxdistill.models.convert.safetensors_io import Checkpoint

SPLITS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelledRows:
    """The rows of every split with integer labels; `names` are the labels' names in that order.

    unlabelled: the further text for teachers that was read (a vocabulary is not).
    """

    splits: dict[str, data.Rows]
    labels: dict[str, np.ndarray]
    names: tuple[str, ...]
    named: bool
    unlabelled: tuple[data.Rows, ...] = ()


class Inputs:
    """Reads each model directory, tokenizer and data set of a chain once, whichever stages share it."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._rows: dict[str, LabelledRows] = {}
        self._datasets: dict[tuple[Any, ...], data.TokenizedDataset] = {}

    # --- directories and tokenizers ----------------------------------------------------------------------------------

    def directory(self, reference: ResolvedTeacher | StudentConfig) -> Path:
        """Local directory of a given model, downloaded or fetched if it must be."""
        return _directory(reference.pretrained, reference.asset, reference.revision)

    def model_config(self, reference: ResolvedTeacher | StudentConfig) -> Any:
        """Architecture of a given model, from its config.json; that its weights are there is seen at the same time.

        Raises:
            ModelError: an encoder where the task needs a decoder, or the other way round.
        """
        directory, task = self.directory(reference), self.chain.run.data.task
        config = _model_config(directory)
        decoder = isinstance(config, models.LlamaConfig)
        if decoder != (FAMILY_OF_TASK[task] == "decoder"):
            kinds = ("decoder", "encoder") if decoder else ("encoder", "decoder")
            raise ModelError(f"{directory}: is a {config.model_type}, {_an(kinds[0])}; {task} needs {_an(kinds[1])}")
        return config

    def classes(self, student: StudentConfig) -> int | None:
        """Classes of a pretrained student's classifier; None if it brings none."""
        checkpoint = Checkpoint(self.directory(student))
        heads = ("classifier.weight", "classifier.out_proj.weight")
        found = [name for name in checkpoint.names if name.endswith(heads)]
        classes = checkpoint.shape(found[0])[0] if found else None
        checkpoint.close()
        return classes

    def tokenizer(self, stage: ChainStage) -> data.Tokenizer:
        """The tokenizer of a stage's student.

        A pretrained student keeps its own; a fresh one takes the run's (`tokenizer:`), else its first teacher's, else
        the warm start's, else the first one that the chain knows.
        """
        student = stage.config.student
        if is_pretrained(student):
            own = self.directory(student)
            if _has_tokenizer(own):
                return _tokenizer(str(own))
        if self.chain.run.tokenizer is not None:
            return _tokenizer(str(models.resolve(self.chain.run.tokenizer)))
        for teacher in (*stage.teachers, *([stage.warm_start_teacher] if stage.warm_start_teacher else [])):
            return self.teacher_tokenizer(teacher)
        return self._first_tokenizer()

    def teacher_tokenizer(self, teacher: ResolvedTeacher) -> data.Tokenizer:
        """The tokenizer that a teacher reads."""
        if teacher.stage is not None:
            return self.tokenizer(self.chain.stage(teacher.stage))
        own = self.directory(teacher)
        if not _has_tokenizer(own) and self.chain.run.tokenizer is not None:
            return _tokenizer(str(models.resolve(self.chain.run.tokenizer)))
        return _tokenizer(str(own))

    def _first_tokenizer(self) -> data.Tokenizer:
        for given in self.chain.given:
            return self.teacher_tokenizer(given_reference(given))
        for stage in self.chain.stages:
            student = stage.config.student
            if is_pretrained(student) and _has_tokenizer(self.directory(student)):
                return _tokenizer(str(self.directory(student)))
        raise ConfigError("tokenizer: no teacher or pretrained student brings one; write tokenizer: DIR_OR_HUB_ID")

    # --- data --------------------------------------------------------------------------------------------------------

    def rows(self, config: DataConfig) -> LabelledRows:
        """Rows and labels of every split; a share of train is held out by hash where validation is left out."""
        key = fingerprint(reading(config))
        if key not in self._rows:
            self._rows[key] = self._read(config)
        return self._rows[key]

    def _read(self, config: DataConfig) -> LabelledRows:
        rows = read_splits(config, data.load_rows)
        encoded, found = data.encode_labels(rows["train"], config.label_names or self._known_names(rows["train"]))
        known = encoded[encoded >= 0]
        if not known.size:
            raise DataError(f"{rows['train'].source}: no row has a label in column {config.label!r}")
        names: tuple[str, ...] = found or tuple(str(index) for index in range(int(known.max()) + 1))
        if len(names) < 2:
            raise DataError(
                f"{rows['train'].source}: every label in column {config.label!r} is {' '.join(names)!r}; expected two "
                "classes or more (data.label says which column, data.label_names lists classes that are not there)"
            )
        labels = {
            split: data.encode_labels(part, found, num_classes=None if found else len(names))[0]
            for split, part in rows.items()
        }
        unlabelled = tuple(data.load_texts(config, source) for source in config.unlabelled if not source.vocabulary)
        return LabelledRows(rows, labels, names, found is not None, unlabelled)

    def _known_names(self, rows: data.Rows) -> tuple[str, ...] | None:
        """Label names of the first given model that fit what the data holds, so that its order is kept."""
        if rows.label_names is not None:
            return rows.label_names
        values = {value for value in rows.labels or () if value is not None}
        numbers = {int(value) for value in values if str(value).lstrip("+-").isdigit()}
        textual = len(numbers) < len(values)
        for names in self.given_names():
            if textual and values == set(names):
                return names
            if not textual and numbers and max(numbers) == len(names) - 1:
                return names
        return None

    def given_names(self, *, saved_for: str | None = None) -> Iterator[tuple[str, ...]]:
        """The label names of given teachers, then of pretrained students; of those that have any.

        `saved_for`: only of models that were saved for this task.
        """
        students = [stage.config.student for stage in self.chain.stages if is_pretrained(stage.config.student)]
        for reference in (*map(given_reference, self.chain.given), *students):
            names = self.model_config(reference).id2label
            if names is not None and saved_for in (None, models.task_from_hf(self.directory(reference))):
                yield names

    def dataset(
        self,
        config: DataConfig,
        split: str,
        tokenizers: Sequence[data.Tokenizer],
        *,
        max_length: int,
        truncate: bool,
        unlabelled: bool = False,
    ) -> data.TokenizedDataset | None:
        """One split, tokenised by each tokenizer, the unlabelled text after it if asked for; None if not given."""
        labelled = self.rows(config)
        if split not in labelled.splits:
            return None
        key = (
            fingerprint(reading(config)),
            split,
            tuple(tokenizer.fingerprint for tokenizer in tokenizers),
            max_length,
            truncate,
            unlabelled and bool(config.unlabelled or config.augment),
        )
        if key not in self._datasets:
            tokenize = functools.partial(data.tokenize, tokenizers=tokenizers, max_length=max_length, truncate=truncate)
            dataset = tokenize(labelled.splits[split], labels=labelled.labels[split])
            for rows in self._unlabelled(config, labelled, tokenizers[0]) if unlabelled else ():
                dataset += tokenize(rows)
            self._datasets[key] = dataset
        return self._datasets[key]

    def _unlabelled(self, config: DataConfig, labelled: LabelledRows, tokenizer: data.Tokenizer) -> Iterator[data.Rows]:
        """The text that teachers alone label, without what validation and test are measured on."""
        sources = iter(labelled.unlabelled)
        measured = {_plain(row) for split in ("validation", "test") for row in _texts(labelled.splits.get(split))}
        more = [_words(tokenizer, source.limit) if source.vocabulary else next(sources) for source in config.unlabelled]
        if config.augment is not None:
            more.append(data.augment(labelled.splits["train"], config.augment, mask_token=tokenizer.mask_token))
        for rows in more:
            kept = rows.take([place for place, row in enumerate(_texts(rows)) if _plain(row) not in measured])
            if len(kept):
                yield kept


def _texts(rows: data.Rows | None) -> Iterator[tuple[str, ...]]:
    """The text of each row."""
    return iter(()) if rows is None else zip(*rows.texts, strict=True)


def _plain(texts: tuple[str, ...]) -> tuple[str, ...]:
    """A row's text as it is compared: without regard to case and spaces."""
    return tuple(" ".join(text.casefold().split()) for text in texts)


def _words(tokenizer: data.Tokenizer, limit: int | None) -> data.Rows:
    """The tokenizer's whole words as rows."""
    words = tokenizer.words()[:limit]
    return data.Rows((words,), None, np.arange(1, len(words) + 1), f"vocabulary of {tokenizer.name}", unit="word")


def check_labels(what: str, config: models.EncoderConfig, labelled: Any) -> tuple[int, ...] | None:
    """Compare a model's labels with the data's; the order to put its classes in, or None if it is right already.

    Raises:
        ModelError: another number of labels, or other names.
    """
    names = labelled.names
    if config.num_labels != len(names):
        raise ModelError(
            f"{what}: has {config.num_labels} labels, the data has {len(names)} ({_listed(names)}); give a model of "
            "these labels"
        )
    if config.id2label is None or not labelled.named:
        return None
    order = models.class_order(config.id2label, names)
    if order is None:
        raise ModelError(
            f"{what}: its labels are {_listed(config.id2label)}, the data's are {_listed(names)}; give a model of "
            "these labels, or say with data.label_names what the data's integers mean"
        )
    return None if order == tuple(range(len(order))) else order


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown}, … ({len(names)} in all)"


def read_splits(config: DataConfig, load: Callable[[DataConfig, SourceConfig], R]) -> dict[str, R]:
    """The rows of every split there is; a share of train is held out by hash where validation is left out."""
    sources: dict[str, SourceConfig | None] = {split: getattr(config, split) for split in SPLITS}
    rows = {split: load(config, source) for split, source in sources.items() if source is not None}
    if "validation" not in rows:
        rows["train"], rows["validation"] = data.split_by_hash(rows["train"], config.validation_share)
    return rows


def reading(config: DataConfig) -> DataConfig:
    """The part of a data configuration that decides which rows are read: how they are batched is neutral."""
    neutral = DataConfig()
    return dataclasses.replace(
        config, batching=neutral.batching, shuffle_window=neutral.shuffle_window, max_length=None, truncate=None
    )


def given_reference(given: GivenTeacher) -> ResolvedTeacher:
    """A given teacher as the stages refer to it."""
    return ResolvedTeacher(pretrained=given.pretrained, asset=given.asset, revision=given.revision)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json"))


def is_pretrained(student: StudentConfig) -> bool:
    """Whether a student's weights are given."""
    return student.pretrained is not None or student.asset is not None


@functools.cache
def _directory(pretrained: str | None, asset: str | None, revision: str | None) -> Path:
    if asset is not None:
        return data.assets.fetch(asset)
    assert pretrained is not None
    return models.resolve(pretrained, revision=revision)


@functools.cache
def _model_config(directory: Path) -> Any:
    Checkpoint(directory).close()
    return models.config_from_hf(directory)


def _an(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@functools.cache
def _tokenizer(directory: str) -> data.Tokenizer:
    return data.load_tokenizer(directory)
