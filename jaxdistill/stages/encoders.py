"""What the tasks of encoders share: students and given teachers with a head for the task, and whether labels agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill import data, losses, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.config.families import DROPOUTS
from jaxdistill.distill.teacher import Teacher
from jaxdistill.errors import ModelError
from jaxdistill.parallel import batch_devices, host_share, whole_batches
from jaxdistill.stages.inputs import check_labels, is_pretrained
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey, stage_objective
from jaxdistill.train.checkpoint import file_digest
from jaxdistill.train.cost import compile_steps
from jaxdistill.train.job import Job
from jaxdistill.typing import Batch, Params

_CALIBRATION_ROWS = 128
_HEADS = {
    "classification": "classifier",
    "token_classification": "classifier of tokens",
    "question_answering": "head for answers",
}


class Labels(Protocol):
    """Labels of a data set: their names in the order of their integers, and whether anybody gave them names."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def named(self) -> bool: ...


@dataclass(frozen=True)
class EncoderSurvey(Survey):
    """A stage of encoders. labels: of its data, None where there are none; truncate: whether longer texts are cut."""

    labels: Labels | None
    truncate: bool


def encoder_config(loading: Loading, stage: ChainStage, tokenizer: data.Tokenizer, *, vocab_size: int) -> Any:
    """A pretrained student's own shape, with the dropouts that are written; else that of a fresh one.

    Its vocabulary is that of the teacher that reads the same tokens, padding included, or `vocab_size`.
    """
    student = stage.config.student
    if is_pretrained(student):
        overrides = {name: getattr(student, name) for name in DROPOUTS if getattr(student, name) is not None}
        return dataclasses.replace(loading.inputs.model_config(student), **overrides)
    first = next(iter(stage.teachers), stage.warm_start_teacher)
    if first is not None and loading.inputs.teacher_tokenizer(first).fingerprint == tokenizer.fingerprint:
        vocab_size = loading.teacher_config(first).vocab_size
    return loading.student_config(stage, vocab_size=vocab_size)


def truncates(config: DataConfig) -> bool:
    """Whether longer texts are cut: where nobody says, only to a length that somebody wrote."""
    return config.max_length is not None if config.truncate is None else config.truncate


def mixture(stage: ChainStage, logits: Sequence[np.ndarray]) -> np.ndarray | None:
    """Logits of the averaged probabilities of a stage's teachers at temperature 1; None without a teacher."""
    if len(logits) < 2:
        return next(iter(logits), None)
    weights = tuple(teacher.weight for teacher in stage.teachers)
    return np.asarray(losses.mixture_logits([jnp.asarray(each) for each in logits], weights=weights))


def calibration_batch(dataset: data.TokenizedDataset, mesh: Mesh) -> Batch:
    """What a quantised teacher is compared on: neither the longest nor the shortest texts."""
    batches = data.eval_batches(dataset, batch_size=whole_batches(_CALIBRATION_ROWS, mesh))
    return batches[len(batches) // 2]


@dataclass(frozen=True)
class LabelledFeed:
    """A tokenised data set in batches of static `lengths`; `share`: the part of each that this process reads.

    Where `batching` is packed, `lengths` are the shapes of `data.packed_shapes`.
    """

    dataset: data.TokenizedDataset
    batching: Literal["padded", "bucketed", "packed"]
    shuffle_window: int
    lengths: tuple[Any, ...]
    share: tuple[int, int]

    def iterator(self, *, batch_size: int, seed: int, steps: int, positions: Sequence[Any] | None = None) -> Any:
        """Grain's, over the whole stage; every part stands at the same batch."""
        batches = data.train_iterator(
            self.dataset,
            batch_size=batch_size,
            seed=seed,
            batching=self.batching,
            shuffle_window=self.shuffle_window,
            steps=steps,
            lengths=self.lengths,
            share=self.share,
        )
        if positions is not None:
            batches.set_state(positions[0])
        return batches

    def longest(self, batch_size: int) -> Batch:
        """Evaluation order begins with the longest rows."""
        if self.batching == "packed":
            return data.widest_packed(self.dataset, batch_size, self.lengths)
        return data.eval_batches(self.dataset, batch_size=batch_size, lengths=self.lengths)[0]

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Real rows, and tokens that are not padding."""
        return int((batch["example_id"] >= 0).sum()), int(batch["attention_mask"].sum())


class Encoders:
    """The models of a chain of encoders for one task: their configurations before, their weights when they are due."""

    def __init__(self, loading: Loading, task: str) -> None:
        self.loading = loading
        self.inputs = loading.inputs
        self.task = task

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def student_config(
        self, stage: ChainStage, tokenizer: data.Tokenizer, labels: Labels | None
    ) -> models.EncoderConfig:
        """The configuration of a stage's student, its classes those of the data."""
        config = encoder_config(self.loading, stage, tokenizer, vocab_size=tokenizer.vocab_size)
        if labels is None:
            return config
        names = labels.names if labels.named else None
        return dataclasses.replace(config, id2label=names, num_labels=len(labels.names))

    def check(
        self,
        stage: ChainStage,
        config: models.EncoderConfig,
        teacher_configs: list[models.EncoderConfig],
        tokenizers: tuple[data.Tokenizer, ...],
        indices: tuple[int, ...],
        labels: Labels | None,
    ) -> None:
        """Vocabularies, positions, labels and terms of the student and of each teacher against the data.

        Raises:
            ModelError, ConfigError: what does not fit.
        """
        where = f"stages.{stage.name}"
        checked = [(f"{where}.student", config, tokenizers[0])]
        for teacher, teacher_config, index in zip(stage.teachers, teacher_configs, indices, strict=True):
            what = f"{where}.teacher ({teacher.label})"
            checked.append((what, teacher_config, tokenizers[index]))
            if teacher.stage is None:
                self._check_given(what, teacher, teacher_config, labels)
            elif labels is not None and (theirs := self.loading.surveys[teacher.stage].labels.names) != labels.names:
                raise ModelError(
                    f"{what}: learned the labels {', '.join(theirs)}, this stage's data has "
                    f"{', '.join(labels.names)}; a student and its teacher need the same labels"
                )
        self.loading.check_start(stage, config)
        self._check_pretrained(stage, labels)
        self.loading.check_terms(stage, config, teacher_configs, tokenizer_indices=indices)
        self.loading.check_sizes(stage, checked)

    def _check_given(
        self, what: str, teacher: ResolvedTeacher, config: models.EncoderConfig, labels: Labels | None
    ) -> None:
        """Labels; and what a given teacher was saved for, where that tells whether it has the head that is needed."""
        saved = models.task_from_hf(self.inputs.directory(teacher))
        if self.task != "classification" and saved != self.task:
            found = "a model without a head" if saved is None else f"a model for {saved}"
            raise ModelError(
                f"{what}: is {found} (architectures in its config.json), and data.task is {self.task}; train one in a "
                "stage of its own (teacher: null, student: {pretrained: …}) and name that stage as the teacher"
            )
        if labels is not None:
            check_labels(what, config, labels)

    def _check_pretrained(self, stage: ChainStage, labels: Labels | None) -> None:
        """A pretrained student's own classifier has as many classes as the data."""
        student = stage.config.student
        if labels is None or not is_pretrained(student):
            return
        saved = models.task_from_hf(self.inputs.directory(student))
        if {saved, self.task} == {"classification", "token_classification"}:
            return  # the other task's classifier is not read
        classes = self.inputs.classes(student)
        if classes not in (None, len(labels.names)):
            raise ModelError(
                f"stages.{stage.name}.student: its classifier has {classes} classes, the data has {len(labels.names)} "
                f"({', '.join(labels.names[:8])}); give a checkpoint without a classifier, or of these classes"
            )

    # --- when a stage's turn has come --------------------------------------------------------------------------------

    def teacher(
        self,
        reference: ResolvedTeacher,
        labels: Labels | None,
        *,
        drift: Callable[[models.Model, Params, Params], float],
    ) -> LoadedTeacher:
        """One teacher: an earlier stage's checkpoint, or a given model whose head must be whole.

        `drift`: see `Loading.teacher`.
        """
        names = None if labels is None else labels.names
        # a given teacher's classes are put in the data's order, which another stage's data may not share
        return self.loading.teacher(
            reference, lambda given: self._load_given(given, labels), drift=drift, variant=names
        )

    def _load_given(self, reference: ResolvedTeacher, labels: Labels | None) -> LoadedTeacher:
        directory = self.inputs.directory(reference)
        reports: list[models.LoadReport] = []
        model, params = models.from_pretrained(
            directory, task=self.task, dtype=self.loading.dtype, report=reports.append
        )
        name = reference.label
        if reports and reports[0].newly_initialised:
            raise ModelError(
                f"teacher {name}: has no trained {_HEADS[self.task]} "
                f"({', '.join(reports[0].newly_initialised)} missing in {directory}); fine-tune it in a stage of its "
                "own (teacher: null, student: {pretrained: …}) and name that stage as the teacher"
            )
        weights = file_digest(sorted(directory.glob("*.safetensors")))
        order = None if labels is None else check_labels(f"teacher {name}", model.config, labels)
        if labels is None or order is None:
            return LoadedTeacher(name, model, params, weights)
        params = models.reorder_classes(params, order)
        self.loading.console.print(f"teacher {name}: classes put in the data's order ({', '.join(labels.names)})")
        return LoadedTeacher(name, model, params, fingerprint([weights, order]))

    def job(
        self,
        survey: EncoderSurvey,
        loaded: Sequence[LoadedTeacher],
        train: data.TokenizedDataset,
        *,
        teachers: Sequence[Teacher],
        teacher_params: Sequence[Params],
        data_fingerprints: Sequence[str],
        validate: Callable[[Params, Any], dict[str, float]],
    ) -> Job:
        """A stage's job on the batches of `train`; `loaded`: whom it learns from, in training by way of `teachers`."""
        stage, settings, mesh = survey.stage, survey.stage.config.train, self.loading.mesh
        steps = data.total_steps(len(train), settings.batch_size, epochs=settings.epochs, steps=settings.steps)
        tokens = settings.batch_size * float(train.lengths.mean())
        price = compile_steps(survey.student, teachers, tokens=tokens)
        lengths: tuple[Any, ...]
        if stage.data.batching == "packed":
            multiple = batch_devices(mesh) * settings.accumulate
            lengths = data.packed_shapes(
                train, settings.batch_size, multiple=multiple, steps=steps, compile_steps=price
            )
        else:
            lengths = data.bucket_lengths(train, steps=steps, compile_steps=price)
        return self.loading.job(
            survey,
            loaded,
            data=data_fingerprints,
            initial_params=lambda: self._initial_params(survey),
            teachers=tuple(teachers),
            teacher_params=tuple(teacher_params),
            objective=stage_objective(stage, survey.student, loaded, total_steps=steps),
            feed=LabelledFeed(train, stage.data.batching, stage.data.shuffle_window, lengths, host_share(mesh)),
            total_steps=steps,
            steps_per_epoch=data.steps_per_epoch(len(train), settings.batch_size),
            tokens_per_step=tokens,
            validate=validate,
        )

    def _initial_params(self, survey: EncoderSurvey) -> Params:
        """The student's parameters at step 0."""
        return self.loading.initial_params(survey, pretrained=lambda directory: self._pretrained(survey, directory))

    def _pretrained(self, survey: EncoderSurvey, directory: Path) -> Params:
        labels = survey.labels
        params = self.loading.pretrained(survey, directory, num_labels=None if labels is None else len(labels.names))
        theirs = self.inputs.model_config(survey.stage.config.student).id2label
        if labels is None or theirs is None or not labels.named:
            return params
        order = models.class_order(theirs, labels.names)
        return params if order is None else models.reorder_classes(params, order)
