"""Language modelling as a chain's task: text in packed sequences, one vocabulary, measured token by token.

What next-token prediction and masked-token prediction do not share is in `next_tokens.py` and `masked_tokens.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Protocol

from jaxdistill import data, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.config.loss_schema import CrossEntropyTerm, FeatureTermConfig, TermConfig, ZLossTerm
from jaxdistill.data import text
from jaxdistill.distill.schedules import always_zero
from jaxdistill.distill.teacher import OnlineTeacher, Teacher
from jaxdistill.distill.top_k import StoredTeacher, TopKForm
from jaxdistill.errors import ModelError
from jaxdistill.parallel import batch_devices, host_share, place, whole_batches
from jaxdistill.stages.inputs import SPLITS
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey, stage_objective
from jaxdistill.stages.stored_text import (
    StoredTextFeed,
    check_lasts,
    stored_form,
    text_content,
    text_directory,
    text_files,
)
from jaxdistill.stages.teacher_files import TeacherFiles, check_cache, opened_cache
from jaxdistill.stages.text_feed import TextFeed
from jaxdistill.train.checkpoint import file_digest
from jaxdistill.train.evaluate_text import evaluate_text
from jaxdistill.train.job import Feed, Job
from jaxdistill.typing import Params

_CALIBRATION_ROWS = 4
_FEW_TOKENS = 256
"""Of a micro-batch on one device: for fewer, whole logits are made faster (up to twice, on a CPU), and are small."""


@dataclass(frozen=True)
class TextSurvey(Survey):
    """A stage with its text; `vocab_size`: the tokens that all its models know, if some have padding beyond."""

    vocab_size: int | None
    splits: dict[str, text.TextSplit] = field(hash=False)


@dataclass(frozen=True)
class _Taught:
    """Who teaches, and with what; `temperatures`: where a stored teacher's normalisers are (None: it is online)."""

    teachers: tuple[Teacher, ...]
    params: tuple[Params, ...]
    feed: Feed
    temperatures: tuple[float, ...] | None = None


class Kind(Protocol):
    """What a language model predicts, and what follows from that.

    Attributes:
      task: as models are built for it.
    """

    @property
    def task(self) -> Literal["causal_lm", "masked_lm"]: ...

    def student_config(self, loading: Loading, stage: ChainStage, tokenizer: data.Tokenizer) -> Any:
        """The student's configuration."""
        ...

    def has_head(self, loading: Loading, reference: ResolvedTeacher) -> bool:
        """Whether a teacher gives logits; one without gives hidden states and attention alone."""
        ...

    def check_text(self, split: text.TextSplit) -> None:
        """Whether there is anything to predict, where that needs a look at the text."""
        ...

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """What `evaluate_text` measures, as it is called here."""
        ...


class LanguageModels:
    """Surveys, jobs and measurements of a chain of language models of one kind."""

    def __init__(self, loading: Loading, kind: Kind) -> None:
        self.loading = loading
        self.inputs = loading.inputs
        self.kind = kind
        self._splits: dict[tuple[Any, ...], text.TextSplit | None] = {}

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def survey(self, stage: ChainStage) -> TextSurvey:
        """Models, tokenizers and text of a stage, compared with each other."""
        tokenizers, indices = self.loading.tokenizers(stage)
        config = self.kind.student_config(self.loading, stage, tokenizers[0])
        teacher_configs = self.loading.teacher_configs(stage)
        known = self._check(stage, config, teacher_configs, tokenizers)
        model, parameters = self.loading.model(stage, config, task=self.kind.task)
        length = self.loading.max_length(stage, (config, *teacher_configs))
        splits = {name: self._split(stage, name, tokenizers[0], length) for name in SPLITS}
        given = {name: split for name, split in splits.items() if split is not None}
        # tokens are compared one by one: every model of a stage reads the student's
        return TextSurvey(stage, model, tokenizers[:1], (0,) * len(indices), length, parameters, known, given)

    def read(self, survey: TextSurvey) -> None:
        """Whether there is something to learn and to measure in the text, and it lasts."""
        for split in survey.splits.values():
            self.kind.check_text(split)
        if survey.stage.teacher_cache == "disk":
            self._form(survey)
            check_lasts(survey.splits["train"], survey.stage, self._steps(survey))
            return
        survey.splits["train"].check_steps(
            batch_size=survey.stage.config.train.batch_size,
            seed=survey.stage.seed,
            steps=self._steps(survey),
            process_count=host_share(self.loading.mesh)[1],
        )

    def check_files(self, survey: TextSurvey) -> None:
        """A cache that is there already, as far as it can be told stale or damaged without its teacher."""
        content = text_content(self.loading, survey, survey.splits["train"], self._form(survey))
        check_cache(text_directory(self.loading, survey), content)

    def _split(
        self, stage: ChainStage, name: Literal["train", "validation", "test"], tokenizer: data.Tokenizer, length: int
    ) -> text.TextSplit | None:
        key = (fingerprint(stage.data), name, tokenizer.fingerprint, length)
        if key not in self._splits:
            self._splits[key] = text.open_split(stage.data, name, tokenizer, sequence_length=length)
        return self._splits[key]

    def _check(
        self,
        stage: ChainStage,
        config: models.LlamaConfig,
        teacher_configs: Sequence[models.LlamaConfig],
        tokenizers: Sequence[data.Tokenizer],
    ) -> int | None:
        """Vocabularies and positions of the student and of each teacher; the size to trim to if they are not equal."""
        where = f"stages.{stage.name}"
        for other in tokenizers[1:]:
            data.check_same_tokens(tokenizers[0], other)
        checked = [(f"{where}.student", config, tokenizers[0])]
        for teacher, theirs in zip(stage.teachers, teacher_configs, strict=True):
            checked.append((f"{where}.teacher ({teacher.label})", theirs, tokenizers[0]))
        self.loading.check_sizes(stage, checked)
        self._check_heads(stage)
        same_tokens = (0,) * len(teacher_configs)  # compared above
        self.loading.check_terms(stage, config, teacher_configs, tokenizer_indices=same_tokens)
        self.loading.check_start(stage, config)
        sizes = {each.vocab_size for _, each, _ in checked}
        if len(sizes) == 1:
            return None
        known = tokenizers[0].max_id + 1
        listed = ", ".join(f"{what} {each.vocab_size:,}" for what, each, _ in checked)
        self.loading.console.print(
            f"{stage.key}: vocabularies are padded differently ({listed}); {known:,} are compared"
        )
        return known

    def _check_heads(self, stage: ChainStage) -> None:
        """Whether the teachers whose logits are compared with have any."""
        reading = [term.type for term in stage.terms if _reads_logits(term) and not always_zero(term.weight)]
        reading += [best for best in ("kl", "agreement") if stage.config.checkpoint.best == best]
        for teacher in stage.teachers if reading else ():
            if not self.kind.has_head(self.loading, teacher):
                raise ModelError(
                    f"stages.{stage.name}.teacher ({teacher.label}): has no {self.kind.task} head, whose "
                    f"logits the stage reads ({', '.join(dict.fromkeys(reading))}); train one in a stage of its own "
                    "(teacher: null, student: {pretrained: …}) and name that stage as the teacher, or use terms on "
                    "hidden states or attention alone"
                )

    def _steps(self, survey: TextSurvey) -> int:
        train, split = survey.stage.config.train, survey.splits["train"]
        if train.steps is not None:
            return train.steps
        assert train.epochs is not None
        cached = survey.stage.teacher_cache == "disk"
        rows = split.row_count() if cached else split.rows_per_epoch(seed=survey.stage.seed)
        return max(1, math.ceil(train.epochs * rows / train.batch_size))

    # --- when a stage's turn has come --------------------------------------------------------------------------------

    def teacher(self, reference: ResolvedTeacher, survey: TextSurvey) -> LoadedTeacher:
        """One teacher: an earlier stage's checkpoint, or a given model."""
        return self.loading.teacher(reference, self._load_given, drift=functools.partial(self._drift, survey))

    def _drift(self, survey: TextSurvey, model: models.Model, params: Params, quantised: Params) -> float:
        """Mean KL of a quantised teacher from the one it was made of, on a few rows of validation text."""
        mesh = self.loading.mesh
        rows = whole_batches(_CALIBRATION_ROWS, mesh)
        found = evaluate_text(
            islice(survey.splits["validation"].eval_batches(batch_size=rows), 1),
            place(quantised, self.loading.layout(model, teacher=True, like=quantised)),
            [place(params, self.loading.layout(model, teacher=True))],
            student=model,
            teachers=(OnlineTeacher(model),),
            teacher_weights=(1.0,),
            vocab_size=survey.vocab_size,
            mesh=mesh,
        )
        return found["kl"]

    def _load_given(self, reference: ResolvedTeacher) -> LoadedTeacher:
        directory = self.inputs.directory(reference)
        shape = models.build(self.inputs.model_config(reference), task=self.kind.task, dtype=self.loading.dtype)
        model, params = models.from_pretrained(
            directory,
            task=self.kind.task,
            dtype=self.loading.dtype,
            param_dtype=self.loading.teacher_dtype,
            sharding=self.loading.layout(shape, teacher=True),
        )
        identity = file_digest(sorted(directory.glob("*.safetensors")))
        has_head = self.kind.has_head(self.loading, reference)
        return LoadedTeacher(reference.label, model, params, identity, measurable=has_head)

    def evaluate(
        self, survey: TextSurvey, model: LoadedTeacher, *, index: int, taught: bool
    ) -> dict[str, dict[str, float]]:
        """Metrics of a model on the validation and test sets of a stage; `taught`: beside its teachers."""
        if not model.measurable:
            return {}
        loaded = [self.teacher(teacher, survey) for teacher in survey.stage.teachers] if taught else []
        loaded = loaded if _comparable(loaded) else []
        placed = self._placed(loaded)
        measure = self._measure(survey, model.model, tuple(OnlineTeacher(each.model) for each in loaded))
        params = place(model.params, self.loading.layout(model.model, like=model.params))
        return {name: measure(name, params, placed) for name in ("validation", "test") if name in survey.splits}

    def _measure(
        self, survey: TextSurvey, model: models.Model, teachers: tuple[OnlineTeacher, ...]
    ) -> Callable[[str, Params, Sequence[Params]], dict[str, float]]:
        mesh = self.loading.mesh
        batch_size = whole_batches(survey.stage.config.evaluate.batch_size, mesh)

        def measure(split: str, params: Params, teacher_params: Sequence[Params]) -> dict[str, float]:
            measured = evaluate_text(
                survey.splits[split].eval_batches(batch_size=batch_size),
                params,
                teacher_params,
                student=model,
                teachers=teachers,
                teacher_weights=tuple(teacher.weight for teacher in survey.stage.teachers) if teachers else (),
                vocab_size=survey.vocab_size,
                mesh=mesh,
            )
            return self.kind.named(measured)

        return measure

    def job(self, survey: TextSurvey) -> Job:
        """Everything a stage's training needs."""
        stage = survey.stage
        loaded = [self.teacher(teacher, survey) for teacher in stage.teachers]
        taught = self._taught(survey, loaded)
        comparable = _comparable(loaded)
        online = tuple(OnlineTeacher(teacher.model) for teacher in loaded)
        measure = self._measure(survey, survey.student, online if comparable else ())
        train, validation = survey.splits["train"], survey.splits["validation"]
        epochs, steps = stage.config.train.epochs, self._steps(survey)
        return self.loading.job(
            survey,
            loaded,
            data=[train.fingerprint, validation.fingerprint],
            initial_params=lambda: self._initial_params(survey),
            teachers=taught.teachers,
            teacher_params=taught.params,
            objective=stage_objective(
                stage,
                survey.student,
                loaded,
                fused=self._fused(survey),
                vocab_size=survey.vocab_size,
                total_steps=steps,
                stored_temperatures=taught.temperatures,
            ),
            feed=taught.feed,
            total_steps=steps,
            steps_per_epoch=None if epochs is None else max(1, round(steps / epochs)),
            tokens_per_step=stage.config.train.batch_size * survey.max_length,
            validate=lambda params, placed: measure(
                "validation",
                params,
                () if not comparable else placed if taught.temperatures is None else self._placed(loaded),
            ),
        )

    def files(self, survey: TextSurvey) -> list[TeacherFiles]:
        """The cache on disk of a stage's teacher."""
        teacher = self.teacher(survey.stage.teachers[0], survey)
        return [text_files(self.loading, survey, survey.splits["train"], teacher, self._form(survey))]

    def _taught(self, survey: TextSurvey, loaded: Sequence[LoadedTeacher]) -> _Taught:
        """Teachers that run in every step, or what is stored of one."""
        stage, train, share = survey.stage, survey.splits["train"], host_share(self.loading.mesh)
        if stage.teacher_cache != "disk":
            teachers = tuple(OnlineTeacher(teacher.model) for teacher in loaded)
            return _Taught(teachers, tuple(teacher.params for teacher in loaded), TextFeed(train, share))
        form, rows = self._form(survey), None
        if not self.loading.untrained:
            (files,) = self.files(survey)
            rows = opened_cache(files, self.loading)
            # it may hold more temperatures than are asked for
            form = dataclasses.replace(form, temperatures=tuple(rows.manifest.content["temperatures"]))
        feed = StoredTextFeed(rows, train, form, share, repeat=stage.data.repeat)
        return _Taught((StoredTeacher(form),), ({},), feed, form.temperatures)

    def _form(self, survey: TextSurvey) -> TopKForm:
        classes = survey.vocab_size or survey.student.config.vocab_size
        return stored_form(self.loading, survey, classes)

    def _placed(self, loaded: Sequence[LoadedTeacher]) -> list[Params]:
        layouts = [self.loading.layout(each.model, teacher=True, like=each.params) for each in loaded]
        return [place(each.params, layout) for each, layout in zip(loaded, layouts, strict=True)]

    def _fused(self, survey: TextSurvey) -> Literal["auto", "on", "off"]:
        """`auto`, resolved as far as sizes decide it."""
        config = survey.stage.config
        if config.fused != "auto":
            return config.fused
        shares = batch_devices(self.loading.mesh) * config.train.accumulate
        tokens = config.train.batch_size // shares * survey.splits["train"].labels_per_row
        return "off" if tokens < _FEW_TOKENS else "auto"

    def _initial_params(self, survey: TextSurvey) -> Params:
        return self.loading.initial_params(
            survey,
            pretrained=lambda directory: self.loading.pretrained(
                survey, directory, sharding=self.loading.spread_layout(survey.student)
            ),
            # of the training text, in the order of evaluation: the same in every process, and for every seed
            calibration=lambda: survey.splits["train"].eval_batches(batch_size=_CALIBRATION_ROWS),
        )


def _reads_logits(term: TermConfig) -> bool:
    """Whether a term compares with a teacher's logits."""
    return not isinstance(term, FeatureTermConfig | CrossEntropyTerm | ZLossTerm)


def _comparable(teachers: Sequence[LoadedTeacher]) -> bool:
    """Whether there are teachers and all of them give logits, so that a student can be measured by theirs."""
    return bool(teachers) and all(teacher.measurable for teacher in teachers)
