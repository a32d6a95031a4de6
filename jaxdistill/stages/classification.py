"""Classification as a chain's task: labelled texts, classes that must agree, logits over a whole data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxdistill import data, losses, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.config.families import DROPOUTS
from jaxdistill.distill.objective import make_objective
from jaxdistill.distill.teacher import CachedTeacher, OnlineTeacher, Teacher
from jaxdistill.distill.teacher_cache import compute_logits, forward_batches, rows_and_ids
from jaxdistill.errors import ConfigError, ModelError
from jaxdistill.parallel import host_share, replicate, whole_batches
from jaxdistill.stages.inputs import SPLITS, LabelledRows, check_labels
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey, depths, widths
from jaxdistill.stages.stored_logits import logits_content, logits_files, stored_logits
from jaxdistill.stages.teacher_files import TeacherFiles, cache_directory, check_cache, open_cache
from jaxdistill.train.checkpoint import file_digest
from jaxdistill.train.cost import compile_steps
from jaxdistill.train.evaluate import evaluate_logits
from jaxdistill.train.job import Job
from jaxdistill.typing import Batch, Params

_EVALUATED = ("validation", "test")
_CALIBRATION_ROWS = 128


@dataclass(frozen=True)
class ClassificationSurvey(Survey):
    """A stage with its labelled rows; `truncate`: whether longer texts are cut."""

    labelled: LabelledRows
    truncate: bool


@dataclass(frozen=True)
class LabelledFeed:
    """A tokenised data set in batches of static `lengths`; `share`: the part of each that this process reads."""

    dataset: data.TokenizedDataset
    batching: Literal["padded", "bucketed"]
    shuffle_window: int
    lengths: tuple[int, ...]
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
        return data.eval_batches(self.dataset, batch_size=batch_size, lengths=self.lengths)[0]

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Real rows, and tokens that are not padding."""
        return int((batch["example_id"] >= 0).sum()), int(batch["attention_mask"].sum())


class Classification:
    """Surveys, jobs and measurements of a chain of classifiers."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.inputs = loading.inputs
        self._logits: dict[tuple[str, str], np.ndarray] = {}

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def survey(self, stage: ChainStage) -> ClassificationSurvey:
        """Models, tokenizers and labels of a stage, compared with each other."""
        tokenizers, indices = self.loading.tokenizers(stage)
        labelled = self.inputs.rows(stage.data)
        config = self._student_config(stage, labelled, tokenizers[0])
        teacher_configs = self.loading.teacher_configs(stage)
        self._check(stage, config, teacher_configs, tokenizers, indices, labelled)
        max_length = self.loading.max_length(stage, (config, *teacher_configs))
        truncate = stage.data.max_length is not None if stage.data.truncate is None else stage.data.truncate
        model, parameters = self.loading.model(stage, config, task="classification")
        return ClassificationSurvey(stage, model, tokenizers, indices, max_length, parameters, labelled, truncate)

    def read(self, survey: ClassificationSurvey) -> None:
        """Tokenise all of a stage's texts: too long a one is found now."""
        for split in SPLITS:
            self.dataset(survey, split)

    def check_files(self, survey: ClassificationSurvey) -> None:
        """Caches that are there already, as far as they can be told stale or damaged without their teachers."""
        train = self.dataset(survey, "train")
        assert train is not None
        for reference, index in zip(survey.stage.teachers, survey.teacher_tokenizer_indices, strict=True):
            directory = cache_directory(self.loading.chain, survey.stage, reference, max_length=survey.max_length)
            check_cache(directory, logits_content(self.loading, survey, train, index=index))

    def _student_config(
        self, stage: ChainStage, labelled: LabelledRows, tokenizer: data.Tokenizer
    ) -> models.EncoderConfig:
        student = stage.config.student
        named = {"id2label": labelled.names if labelled.named else None, "num_labels": len(labelled.names)}
        if student.pretrained is not None or student.asset is not None:
            overrides = {name: getattr(student, name) for name in DROPOUTS if getattr(student, name) is not None}
            return dataclasses.replace(self.inputs.model_config(student), **named, **overrides)
        first = next(iter(stage.teachers), stage.warm_start_teacher)
        same = first is not None and self.inputs.teacher_tokenizer(first).fingerprint == tokenizer.fingerprint
        vocab_size = self.loading.teacher_config(first).vocab_size if first and same else tokenizer.vocab_size
        return dataclasses.replace(self.loading.student_config(stage, vocab_size=vocab_size), **named)

    def _check(
        self,
        stage: ChainStage,
        config: models.EncoderConfig,
        teacher_configs: list[models.EncoderConfig],
        tokenizers: tuple[data.Tokenizer, ...],
        indices: tuple[int, ...],
        labelled: LabelledRows,
    ) -> None:
        """Vocabularies, positions and labels of the student and of each teacher against the data."""
        where = f"stages.{stage.name}"
        checked = [(f"{where}.student", config, tokenizers[0])]
        for teacher, teacher_config, index in zip(stage.teachers, teacher_configs, indices, strict=True):
            what = f"{where}.teacher ({teacher.label})"
            checked.append((what, teacher_config, tokenizers[index]))
            if teacher.stage is None:
                check_labels(what, teacher_config, labelled)
            elif (theirs := self.loading.surveys[teacher.stage].labelled.names) != labelled.names:
                raise ModelError(
                    f"{what}: learned the labels {', '.join(theirs)}, this stage's data has "
                    f"{', '.join(labelled.names)}; a student and its teacher need the same labels"
                )
        augment = stage.data.augment
        if stage.teachers and augment is not None and augment.mask and tokenizers[0].mask_token is None:
            raise ConfigError(f"data.augment.mask: tokenizer {tokenizers[0].name} has no mask token; set it to 0")
        student = stage.config.student
        self.loading.check_start(stage, config)
        if student.pretrained is not None or student.asset is not None:
            classes = self.inputs.classes(student)
            if classes not in (None, len(labelled.names)):
                raise ModelError(
                    f"{where}.student: its classifier has {classes} classes, the data has {len(labelled.names)} "
                    f"({', '.join(labelled.names[:8])}); give a checkpoint without a classifier, or of these classes"
                )
        self.loading.check_terms(stage, config, teacher_configs, tokenizer_indices=indices)
        self.loading.check_sizes(stage, checked)

    # --- when a stage's turn has come --------------------------------------------------------------------------------

    def dataset(self, survey: ClassificationSurvey, split: str) -> data.TokenizedDataset | None:
        """One split of a stage's data, tokenised; a long row is an error unless truncation was asked for.

        A stage with a teacher trains on the unlabelled text as well.
        """
        return self.inputs.dataset(
            survey.stage.data,
            split,
            survey.tokenizers,
            max_length=survey.max_length,
            truncate=survey.truncate,
            unlabelled=split == "train" and bool(survey.stage.teachers),
        )

    def teacher(self, reference: ResolvedTeacher, survey: ClassificationSurvey) -> LoadedTeacher:
        """One teacher: an earlier stage's checkpoint, or a given model whose classifier must be whole."""
        labelled = survey.labelled
        # a given teacher's classes are put in the data's order, which another stage's data may not share
        index = survey.teacher_tokenizer_indices[survey.stage.teachers.index(reference)]
        return self.loading.teacher(
            reference,
            lambda given: self._load_given(given, labelled),
            drift=lambda model, params, quantised: self._drift(survey, model, (params, quantised), index=index),
            variant=labelled.names,
        )

    def _drift(
        self, survey: ClassificationSurvey, model: models.Model, params: tuple[Params, Params], *, index: int
    ) -> float:
        """Mean KL of what the second parameters answer from what the first do, on a batch of validation data."""
        dataset, mesh = self.dataset(survey, "validation"), self.loading.mesh
        assert dataset is not None
        batches = data.eval_batches(dataset, batch_size=whole_batches(_CALIBRATION_ROWS, mesh))
        some = [batches[len(batches) // 2]]  # neither the longest nor the shortest
        exact, quantised = (
            rows_and_ids(*forward_batches(model, replicate(each, mesh), some, mesh, tokenizer_index=index))[0]
            for each in params
        )
        return evaluate_logits(quantised, exact, None)["kl"]

    def _load_given(self, reference: ResolvedTeacher, labelled: LabelledRows) -> LoadedTeacher:
        directory = self.inputs.directory(reference)
        reports: list[models.LoadReport] = []
        model, params = models.from_pretrained(
            directory, task="classification", dtype=self.loading.dtype, report=reports.append
        )
        name = reference.label
        if reports and reports[0].newly_initialised:
            raise ModelError(
                f"teacher {name}: has no trained classifier ({', '.join(reports[0].newly_initialised)} missing in "
                f"{directory}); fine-tune it in a stage of its own (teacher: null, student: {{pretrained: …}}) and "
                "name that stage as the teacher"
            )
        order = check_labels(f"teacher {name}", model.config, labelled)
        if order is not None:
            params = models.reorder_classes(params, order)
            self.loading.console.print(f"teacher {name}: classes put in the data's order ({', '.join(labelled.names)})")
        weights = file_digest(sorted(directory.glob("*.safetensors")))
        return LoadedTeacher(name, model, params, weights if order is None else fingerprint([weights, order]))

    def logits(
        self, teacher: LoadedTeacher, dataset: data.TokenizedDataset, *, index: int, batch_size: int
    ) -> np.ndarray:
        """A teacher's logits `[N, C]` on a data set, computed once and kept for later stages and repeats."""
        key = (teacher.identity, f"{dataset.fingerprint}/{index}")
        if self.loading.untrained:
            return np.zeros((len(dataset), teacher.model.num_labels), np.float32)
        if key not in self._logits:
            mesh = self.loading.mesh
            self._logits[key] = compute_logits(
                teacher.model,
                replicate(teacher.params, mesh),
                data.eval_batches(dataset, batch_size=whole_batches(batch_size, mesh)),
                len(dataset),
                mesh,
                tokenizer_index=index,
            )
        return self._logits[key]

    def mixture(self, survey: ClassificationSurvey, dataset: data.TokenizedDataset) -> np.ndarray | None:
        """Logits of the teachers' averaged probabilities at temperature 1 on a data set; None without a teacher."""
        loaded = [self.teacher(teacher, survey) for teacher in survey.stage.teachers]
        if not loaded:
            return None
        batch_size = survey.stage.config.evaluate.batch_size
        each = [
            self.logits(teacher, dataset, index=index, batch_size=batch_size)
            for teacher, index in zip(loaded, survey.teacher_tokenizer_indices, strict=True)
        ]
        if len(each) == 1:
            return each[0]
        weights = tuple(teacher.weight for teacher in survey.stage.teachers)
        return np.asarray(losses.mixture_logits([jax.numpy.asarray(part) for part in each], weights=weights))

    def files(self, survey: ClassificationSurvey) -> list[TeacherFiles]:
        """The caches on disk of a stage's teachers."""
        train = self.dataset(survey, "train")
        assert train is not None
        return [
            logits_files(self.loading, survey, train, reference, self.teacher(reference, survey), index=index)
            for reference, index in zip(survey.stage.teachers, survey.teacher_tokenizer_indices, strict=True)
        ]

    def evaluate(
        self, survey: ClassificationSurvey, model: LoadedTeacher, *, index: int, taught: bool
    ) -> dict[str, dict[str, float]]:
        """Metrics of a model on the validation and test sets of a stage; `taught`: beside its teachers."""
        results = {}
        for split in _EVALUATED:
            dataset = self.dataset(survey, split)
            if dataset is None:
                continue
            batch_size = survey.stage.config.evaluate.batch_size
            logits = self.logits(model, dataset, index=index, batch_size=batch_size)
            teachers_logits = self.mixture(survey, dataset) if taught else None
            results[split] = evaluate_logits(logits, teachers_logits, dataset.labels)
        return results

    def job(self, survey: ClassificationSurvey) -> Job:
        """Everything a stage's training needs."""
        stage = survey.stage
        train, validation = self.dataset(survey, "train"), self.dataset(survey, "validation")
        assert train is not None
        assert validation is not None
        loaded = [self.teacher(teacher, survey) for teacher in stage.teachers]
        teachers: list[Teacher] = []
        teacher_params: list[Params] = []
        for place, (teacher, index) in enumerate(zip(loaded, survey.teacher_tokenizer_indices, strict=True)):
            if stage.teacher_cache == "off":
                teachers.append(OnlineTeacher(teacher.model, index))
                teacher_params.append(teacher.params)
                continue
            if stage.teacher_cache == "disk" and not self.loading.untrained:
                files = self.files(survey)[place]
                cached = stored_logits(open_cache(files, self.loading.console), len(train))
            else:
                cached = self.logits(teacher, train, index=index, batch_size=stage.config.evaluate.batch_size)
            teachers.append(CachedTeacher())
            teacher_params.append({"logits": cached})
        mesh, settings = self.loading.mesh, stage.config.train
        steps = data.total_steps(len(train), settings.batch_size, epochs=settings.epochs, steps=settings.steps)
        tokens = settings.batch_size * float(train.lengths.mean())
        price = compile_steps(survey.student, teachers, tokens=tokens)
        lengths = data.bucket_lengths(train, steps=steps, compile_steps=price)
        return self.loading.job(
            survey,
            loaded,
            data=[train.fingerprint, validation.fingerprint],
            initial_params=lambda: self._initial_params(survey),
            teachers=tuple(teachers),
            teacher_params=tuple(teacher_params),
            objective=make_objective(
                stage.terms,
                tuple(teacher.weight for teacher in stage.teachers),
                depths=depths(survey.student, loaded),
                widths=widths(survey.student, loaded),
                total_steps=steps,
            ),
            feed=LabelledFeed(train, stage.data.batching, stage.data.shuffle_window, lengths, host_share(mesh)),
            total_steps=steps,
            steps_per_epoch=data.steps_per_epoch(len(train), settings.batch_size),
            tokens_per_step=tokens,
            validate=self._validation(survey, validation),
        )

    def _validation(self, survey: ClassificationSurvey, dataset: data.TokenizedDataset) -> Any:
        """The measurement that chooses checkpoints; the teachers' logits are computed once, here."""
        theirs = self.mixture(survey, dataset)
        mesh = self.loading.mesh
        batch_size = whole_batches(survey.stage.config.evaluate.batch_size, mesh)

        def validate(params: Params, _: Any) -> dict[str, float]:
            batches = data.eval_batches(dataset, batch_size=batch_size)
            logits = compute_logits(survey.student, params, batches, len(dataset), mesh)
            return evaluate_logits(logits, theirs, dataset.labels)

        return validate

    def _initial_params(self, survey: ClassificationSurvey) -> Params:
        return self.loading.initial_params(survey, pretrained=lambda directory: self._pretrained(survey, directory))

    def _pretrained(self, survey: ClassificationSurvey, directory: Path) -> Params:
        stage = survey.stage
        reports: list[models.LoadReport] = []
        _, params = models.from_pretrained(
            directory,
            task="classification",
            num_labels=len(survey.labelled.names),
            seed=stage.seed,
            report=reports.append,
        )
        for line in filter(None, map(str, reports)):
            self.loading.console.print(f"{stage.key}: {line}", highlight=False)
        theirs = self.inputs.model_config(stage.config.student).id2label
        if theirs is None or not survey.labelled.named:
            return params
        order = models.class_order(theirs, survey.labelled.names)
        return params if order is None else models.reorder_classes(params, order)
