"""From a `ChainStage` to a `Job`: models built, teachers loaded, data tokenised, everything compared with everything.

`survey` reads only configurations, tokenizers and data, for every stage, before the first one trains: whatever can be
known to be wrong is found there. `job` loads weights, when a stage's turn has come.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxdistill import data, losses, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import Chain, ChainStage, ResolvedTeacher
from jaxdistill.distill.objective import make_objective
from jaxdistill.distill.teacher import CachedTeacher, OnlineTeacher, Teacher
from jaxdistill.distill.teacher_cache import compute_logits
from jaxdistill.distill.warm_start import check_warm_start, warm_start
from jaxdistill.errors import ConfigError, ModelError
from jaxdistill.parallel import make_mesh, replicate, whole_batches
from jaxdistill.run_directory import handed_on, read_record
from jaxdistill.stages.inputs import SPLITS, Inputs, LabelledRows, check_labels
from jaxdistill.train.checkpoint import file_digest, load_params
from jaxdistill.train.loop import Job
from jaxdistill.train.metrics import require_wandb
from jaxdistill.typing import Params


@dataclass(frozen=True)
class Survey:
    """What is known of a stage before any weight is loaded."""

    stage: ChainStage
    student: models.Model
    tokenizers: tuple[data.Tokenizer, ...]
    teacher_tokenizer_indices: tuple[int, ...]
    labelled: LabelledRows
    max_length: int
    truncate: bool
    parameters: int


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in memory. `identity` is the fingerprint of its weights."""

    name: str
    model: models.Model
    params: Params
    identity: str


class Preparation:
    """Builds the jobs of one chain; keeps what stages share: models in memory, teacher logits, data."""

    def __init__(self, chain: Chain, console: Console, *, untrained: bool = False) -> None:
        """`untrained`: stand in for stages that have not been trained with fresh models of their shape."""
        self.chain = chain
        self.console = console
        self.untrained = untrained
        self.inputs = Inputs(chain)
        self.surveys: dict[str, Survey] = {}
        self._teachers: dict[tuple[ResolvedTeacher, tuple[str, ...]], LoadedTeacher] = {}
        self._logits: dict[tuple[str, str], np.ndarray] = {}

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def survey(self) -> tuple[Survey, ...]:
        """Resolve and compare every stage's models, tokenizers and labels, and tokenise all texts."""
        if self.chain.run.logging.wandb is not None:
            require_wandb()
        for stage in self.chain.stages:
            self.surveys[stage.key] = self._survey_stage(stage)
        for survey in self.surveys.values():
            for split in SPLITS:
                self.dataset(survey, split)
        return tuple(self.surveys.values())

    def _survey_stage(self, stage: ChainStage) -> Survey:
        tokenizers = [self.inputs.tokenizer(stage)]
        indices = []
        for teacher in stage.teachers:
            theirs = self.inputs.teacher_tokenizer(teacher)
            known = [tokenizer.fingerprint for tokenizer in tokenizers]
            if theirs.fingerprint not in known:
                tokenizers.append(theirs)
            indices.append(known.index(theirs.fingerprint) if theirs.fingerprint in known else len(known))
        labelled = self.inputs.rows(stage.data)
        config = self._student_config(stage, labelled, tokenizers[0])
        teacher_configs = [self._teacher_config(teacher) for teacher in stage.teachers]
        self._check(stage, config, teacher_configs, tokenizers, indices, labelled)
        max_length = stage.data.max_length or min(models.positions(c) for c in (config, *teacher_configs))
        truncate = stage.data.max_length is not None if stage.data.truncate is None else stage.data.truncate
        model = models.build(config, task="classification", num_labels=len(labelled.names), dtype=self._dtype())
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return Survey(
            stage,
            model,
            tuple(tokenizers),
            tuple(indices),
            labelled,
            max_length,
            truncate,
            models.parameter_count(shapes),
        )

    def _dtype(self) -> Any:
        return jax.numpy.dtype(self.chain.run.precision.compute)

    def _student_config(
        self, stage: ChainStage, labelled: LabelledRows, tokenizer: data.Tokenizer
    ) -> models.EncoderConfig:
        student = stage.config.student
        named = {"id2label": labelled.names if labelled.named else None, "num_labels": len(labelled.names)}
        if student.pretrained is not None or student.asset is not None:
            overrides = {
                name: getattr(student, name)
                for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
                if getattr(student, name) is not None
            }
            return dataclasses.replace(self.inputs.model_config(student), **named, **overrides)
        shape = {
            name: value
            for name, value in dataclasses.asdict(student).items()
            if value is not None and name not in ("pretrained", "asset", "revision", "architecture", "warm_start")
        }
        if "vocab_size" not in shape:
            first = next(iter(stage.teachers), stage.warm_start_teacher)
            same = first is not None and self.inputs.teacher_tokenizer(first).fingerprint == tokenizer.fingerprint
            shape["vocab_size"] = self._teacher_config(first).vocab_size if first and same else tokenizer.vocab_size
        try:
            config = models.config_from_hf({"model_type": student.architecture, **shape})
        except ModelError as error:
            raise ConfigError(f"stages.{stage.name}.student: {error}") from error
        return dataclasses.replace(config, **named)

    def _teacher_config(self, teacher: ResolvedTeacher) -> models.EncoderConfig:
        if teacher.stage is None:
            return self.inputs.model_config(teacher)
        return self.surveys[teacher.stage].student.config

    def _check(
        self,
        stage: ChainStage,
        config: models.EncoderConfig,
        teacher_configs: list[models.EncoderConfig],
        tokenizers: list[data.Tokenizer],
        indices: list[int],
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
            elif self.surveys[teacher.stage].labelled.names != labelled.names:
                raise ModelError(
                    f"{what}: learned the labels {', '.join(self.surveys[teacher.stage].labelled.names)}, this stage's "
                    f"data has {', '.join(labelled.names)}; a student and its teacher need the same labels"
                )
        augment = stage.data.augment
        if stage.teachers and augment is not None and augment.mask and tokenizers[0].mask_token is None:
            raise ConfigError(f"data.augment.mask: tokenizer {tokenizers[0].name} has no mask token; set it to 0")
        student = stage.config.student
        if student.warm_start is not None and stage.warm_start_teacher is not None:
            try:
                check_warm_start(config, self._teacher_config(stage.warm_start_teacher), student.warm_start)
            except ModelError as error:
                raise ModelError(f"{where}.student: {error}") from error
        if student.pretrained is not None or student.asset is not None:
            classes = self.inputs.classes(student)
            if classes not in (None, len(labelled.names)):
                raise ModelError(
                    f"{where}.student: its classifier has {classes} classes, the data has {len(labelled.names)} "
                    f"({', '.join(labelled.names[:8])}); give a checkpoint without a classifier, or of these classes"
                )
        for what, model_config, tokenizer in checked:
            data.check_vocabulary(tokenizer, model_config.vocab_size, model=what)
            positions = models.positions(model_config)
            if stage.data.max_length is not None and stage.data.max_length > positions:
                raise ConfigError(
                    f"data.max_length: {stage.data.max_length} tokens, but {what} has {positions} positions; set "
                    f"data.max_length={positions} or less"
                )

    def first_use(self, reference: ResolvedTeacher) -> tuple[Survey, int]:
        """The first stage that learns from a given teacher, and the index of the tokenizer it reads there."""
        for survey in self.surveys.values():
            for teacher, index in zip(survey.stage.teachers, survey.teacher_tokenizer_indices, strict=True):
                if dataclasses.replace(teacher, weight=reference.weight) == reference:
                    return survey, index
        raise LookupError(reference.label)

    # --- when a stage's turn has come --------------------------------------------------------------------------------

    def dataset(self, survey: Survey, split: str) -> data.TokenizedDataset | None:
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

    def teachers(self, survey: Survey) -> tuple[LoadedTeacher, ...]:
        """The stage's teachers, loaded, their classes in the data's order."""
        return tuple(self.teacher(teacher, survey.labelled) for teacher in survey.stage.teachers)

    def teacher(self, reference: ResolvedTeacher, labelled: LabelledRows) -> LoadedTeacher:
        """One teacher: an earlier stage's checkpoint, or a given model whose classifier must be whole."""
        # a given teacher's classes are put in the data's order, which another stage's data may not share
        key = (dataclasses.replace(reference, weight=1.0), labelled.names)
        if key not in self._teachers:
            trained = reference.stage is not None
            self._teachers[key] = self._load_stage(reference) if trained else self._load_given(reference, labelled)
        return self._teachers[key]

    def _load_stage(self, reference: ResolvedTeacher) -> LoadedTeacher:
        assert reference.stage is not None
        stage = self.chain.stage(reference.stage)
        model = self.surveys[reference.stage].student
        record = read_record(stage.directory)
        if record is None and self.untrained:
            return LoadedTeacher(reference.stage, model, jax.jit(model.init)(jax.random.key(stage.seed)), "untrained")
        assert record is not None, f"{stage.key} has not finished"
        params = load_params(handed_on(stage.directory, record))
        return LoadedTeacher(reference.stage, model, params, record["identity"])

    def _load_given(self, reference: ResolvedTeacher, labelled: LabelledRows) -> LoadedTeacher:
        directory = self.inputs.directory(reference)
        reports: list[models.LoadReport] = []
        model, params = models.from_pretrained(
            directory, task="classification", dtype=self._dtype(), report=reports.append
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
            self.console.print(f"teacher {name}: classes put in the data's order ({', '.join(labelled.names)})")
        weights = file_digest(sorted(directory.glob("*.safetensors")))
        return LoadedTeacher(name, model, params, weights if order is None else fingerprint([weights, order]))

    def logits(
        self, teacher: LoadedTeacher, dataset: data.TokenizedDataset, *, index: int, batch_size: int
    ) -> np.ndarray:
        """A teacher's logits `[N, C]` on a data set, computed once and kept for later stages and repeats."""
        key = (teacher.identity, f"{dataset.fingerprint}/{index}")
        if self.untrained:
            return np.zeros((len(dataset), teacher.model.num_labels), np.float32)
        if key not in self._logits:
            mesh = make_mesh(self.chain.run.parallel)
            self._logits[key] = compute_logits(
                teacher.model,
                replicate(teacher.params, mesh),
                data.eval_batches(dataset, batch_size=whole_batches(batch_size, mesh)),
                len(dataset),
                mesh,
                tokenizer_index=index,
            )
        return self._logits[key]

    def mixture(self, survey: Survey, dataset: data.TokenizedDataset) -> np.ndarray | None:
        """Logits of the teachers' averaged probabilities at temperature 1 on a data set; None without a teacher."""
        loaded = self.teachers(survey)
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

    def job(self, survey: Survey) -> Job:
        """Everything a stage's training needs."""
        stage, run = survey.stage, self.chain.run
        train, validation = self.dataset(survey, "train"), self.dataset(survey, "validation")
        assert train is not None
        assert validation is not None
        loaded = self.teachers(survey)
        teachers: list[Teacher] = []
        teacher_params: list[Params] = []
        for teacher, index in zip(loaded, survey.teacher_tokenizer_indices, strict=True):
            if stage.teacher_cache == "memory":
                cached = self.logits(teacher, train, index=index, batch_size=stage.config.evaluate.batch_size)
                teachers.append(CachedTeacher())
                teacher_params.append({"logits": cached})
            else:
                teachers.append(OnlineTeacher(teacher.model, index))
                teacher_params.append(teacher.params)
        return Job(
            title=stage.key,
            directory=stage.directory,
            config=stage.config,
            seed=stage.seed,
            student=survey.student,
            initial_params=lambda: self._initial_params(survey),
            teachers=tuple(teachers),
            teacher_params=tuple(teacher_params),
            objective=make_objective(stage.terms, tuple(teacher.weight for teacher in stage.teachers)),
            train=train,
            validation=validation,
            validation_logits=self.mixture(survey, validation),
            batching=stage.data.batching,
            shuffle_window=stage.data.shuffle_window,
            parallel=run.parallel,
            logging=run.logging,
            run_name=f"{run.name}/{stage.key}",
            fingerprints={
                "student": fingerprint(dataclasses.asdict(survey.student.config)),
                "teacher": fingerprint([teacher.identity for teacher in loaded]),
                "tokenizer": fingerprint([tokenizer.fingerprint for tokenizer in survey.tokenizers]),
                "data": fingerprint([train.fingerprint, validation.fingerprint]),
            },
        )

    def _initial_params(self, survey: Survey) -> Params:
        """The student's parameters at step 0: pretrained or fresh, then warm-started where asked."""
        stage, student = survey.stage, survey.stage.config.student
        if student.pretrained is not None or student.asset is not None:
            params = self._pretrained(survey, self.inputs.directory(student))
        else:
            params = jax.jit(survey.student.init)(jax.random.key(stage.seed))
        if student.warm_start is None:
            return params
        assert stage.warm_start_teacher is not None
        model, source = self._warm_start_source(stage.warm_start_teacher)
        params, lines = warm_start(survey.student, params, model, source, student.warm_start)
        for line in lines:
            self.console.print(f"{stage.key}: {line}")
        return params

    def _warm_start_source(self, reference: ResolvedTeacher) -> tuple[models.Model, Params]:
        """The model that layers and embeddings are copied from: unlike a teacher, it needs no classifier."""
        if reference.stage is not None:
            source = self._load_stage(reference)
            return source.model, source.params
        return models.from_pretrained(self.inputs.directory(reference), task="classification")

    def _pretrained(self, survey: Survey, directory: Path) -> Params:
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
            self.console.print(f"{stage.key}: {line}", highlight=False)
        theirs = self.inputs.model_config(stage.config.student).id2label
        if theirs is None or not survey.labelled.named:
            return params
        order = models.class_order(theirs, survey.labelled.names)
        return params if order is None else models.reorder_classes(params, order)
