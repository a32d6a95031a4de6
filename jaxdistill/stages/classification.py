"""Classification as a chain's task: labelled texts, classes that must agree, logits over a whole data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import data, models
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.distill.teacher import CachedTeacher, OnlineTeacher, Teacher
from jaxdistill.distill.teacher_cache import compute_logits, forward_batches, rows_and_ids
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import replicate, whole_batches
from jaxdistill.stages.encoders import Encoders, EncoderSurvey, calibration_batch, mixture, truncates
from jaxdistill.stages.inputs import SPLITS, LabelledRows
from jaxdistill.stages.loading import LoadedTeacher, Loading
from jaxdistill.stages.stored_logits import logits_content, logits_files, stored_logits
from jaxdistill.stages.teacher_files import TeacherFiles, cache_directory, check_cache, opened_cache
from jaxdistill.train.evaluate import evaluate_logits
from jaxdistill.train.job import Job
from jaxdistill.typing import Params

_EVALUATED = ("validation", "test")


@dataclass(frozen=True)
class ClassificationSurvey(EncoderSurvey):
    """A stage with its labelled rows."""

    labels: LabelledRows


class Classification:
    """Surveys, jobs and measurements of a chain of classifiers."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.inputs = loading.inputs
        self.encoders = Encoders(loading, "classification")
        self._logits: dict[tuple[str, str], np.ndarray] = {}
        self._stored: dict[Path, np.ndarray] = {}

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def survey(self, stage: ChainStage) -> ClassificationSurvey:
        """Models, tokenizers and labels of a stage, compared with each other."""
        tokenizers, indices = self.loading.tokenizers(stage)
        labelled = self.inputs.rows(stage.data)
        config = self.encoders.student_config(stage, tokenizers[0], labelled)
        teacher_configs = self.loading.teacher_configs(stage)
        self.encoders.check(stage, config, teacher_configs, tokenizers, indices, labelled)
        augment = stage.data.augment
        if stage.teachers and augment is not None and augment.mask and tokenizers[0].mask_token is None:
            raise ConfigError(f"data.augment.mask: tokenizer {tokenizers[0].name} has no mask token; set it to 0")
        max_length = self.loading.max_length(stage, (config, *teacher_configs))
        truncate = truncates(stage.data)
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
        index = survey.tokenizer_index(reference)
        assert index is not None, reference
        return self.encoders.teacher(
            reference,
            survey.labels,
            drift=lambda model, params, quantised: self._drift(survey, model, (params, quantised), index=index),
        )

    def _drift(
        self, survey: ClassificationSurvey, model: models.Model, params: tuple[Params, Params], *, index: int
    ) -> float:
        """Mean KL of what the second parameters answer from what the first do, on a batch of validation data."""
        dataset, mesh = self.dataset(survey, "validation"), self.loading.mesh
        assert dataset is not None
        some = [calibration_batch(dataset, mesh)]
        exact, quantised = (
            rows_and_ids(*forward_batches(model, replicate(each, mesh), some, mesh, tokenizer_index=index))[0]
            for each in params
        )
        return evaluate_logits(quantised, exact, None)["kl"]

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
        batch_size = survey.stage.config.evaluate.batch_size
        each = [
            self.logits(teacher, dataset, index=index, batch_size=batch_size)
            for teacher, index in zip(loaded, survey.teacher_tokenizer_indices, strict=True)
        ]
        return mixture(survey.stage, each)

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
        files = self.files(survey) if stage.teacher_cache == "disk" and not self.loading.untrained else []
        teachers: list[Teacher] = []
        teacher_params: list[Params] = []
        for place, (teacher, index) in enumerate(zip(loaded, survey.teacher_tokenizer_indices, strict=True)):
            if stage.teacher_cache == "off":
                teachers.append(OnlineTeacher(teacher.model, index))
                teacher_params.append(teacher.params)
                continue
            if files:
                cached = self._stored_logits(files[place])
            else:
                cached = self.logits(teacher, train, index=index, batch_size=stage.config.evaluate.batch_size)
            teachers.append(CachedTeacher())
            teacher_params.append({"logits": cached})
        return self.encoders.job(
            survey,
            loaded,
            train,
            teachers=teachers,
            teacher_params=teacher_params,
            data_fingerprints=[train.fingerprint, validation.fingerprint],
            validate=self._validation(survey, validation),
        )

    def _stored_logits(self, files: TeacherFiles) -> np.ndarray:
        """What a cache holds, read once for all seeds and students that learn from it."""
        if files.directory not in self._stored:
            self._stored[files.directory] = stored_logits(opened_cache(files, self.loading), files.rows)
        return self._stored[files.directory]

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
