"""Causal language modelling as a chain's task: text in packed sequences, one vocabulary, measured token by token."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from jaxdistill import data, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.data import text
from jaxdistill.distill.teacher import OnlineTeacher, Teacher
from jaxdistill.distill.top_k import StoredTeacher, TopKForm
from jaxdistill.errors import CheckpointError
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
from jaxdistill.train.checkpoint import file_digest
from jaxdistill.train.evaluate_text import evaluate_text
from jaxdistill.train.job import Feed, Job
from jaxdistill.typing import Batch, Params

_CALIBRATION_ROWS = 4
_FEW_TOKENS = 256
"""Of a micro-batch on one device: for fewer, whole logits are made faster (up to twice, on a CPU), and are small."""


@dataclass(frozen=True)
class TextSurvey(Survey):
    """A stage with its text; `vocab_size`: the tokens that all its models know, if some have padding beyond."""

    vocab_size: int | None
    splits: dict[str, text.TextSplit] = field(hash=False)


@dataclass(frozen=True)
class TextFeed:
    """Packed sequences of one split; `share`: which part of every batch this process reads, of how many."""

    split: text.TextSplit
    share: tuple[int, int]

    def iterator(self, *, batch_size: int, seed: int, steps: int, positions: Sequence[Any] | None = None) -> Any:
        """Documents are dealt out to as many parts as processes began the stage, and stay in their parts."""
        index, count = self.share
        states = None if positions is None else [state for states in positions for state in states]
        parts = count if states is None else len(states)
        if parts % count:
            raise CheckpointError(
                f"{self.split.source}: the stage was begun by {parts} processes, and {count} cannot share their parts "
                f"of the text evenly; continue with a number that divides {parts}"
            )
        own = range(index * parts // count, (index + 1) * parts // count)
        batches = [
            self.split.train_iterator(
                batch_size=batch_size, seed=seed, steps=steps, process_index=part, process_count=parts
            )
            for part in own
        ]
        for part, iterator in zip(own, batches, strict=True):
            if states is not None:
                iterator.set_state(states[part])
        return _Parts(batches)

    def longest(self, batch_size: int) -> Batch:
        """All batches have one shape."""
        batches = self.iterator(batch_size=batch_size, seed=0, steps=1)
        batch = next(batches)
        batches.close()
        return batch

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Real rows, and tokens that are not padding."""
        return int((batch["example_id"] >= 0).sum()), int((batch["segment_ids"] > 0).sum())


class _Parts:
    """Several parts of every batch, one below the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [next(part) for part in self._parts]
        return rows[0] if len(rows) == 1 else {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}

    def get_state(self) -> list[Any]:
        """Of every part."""
        return [part.get_state() for part in self._parts]

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        for part in self._parts:
            part.close()


@dataclass(frozen=True)
class _Taught:
    """Who teaches, and with what; `temperatures`: where a stored teacher's normalisers are (None: it is online)."""

    teachers: tuple[Teacher, ...]
    params: tuple[Params, ...]
    feed: Feed
    temperatures: tuple[float, ...] | None = None


class CausalLM:
    """Surveys, jobs and measurements of a chain of causal language models."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.inputs = loading.inputs
        self._splits: dict[tuple[Any, ...], text.TextSplit | None] = {}

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def survey(self, stage: ChainStage) -> TextSurvey:
        """Models, tokenizers and text of a stage, compared with each other."""
        tokenizers, indices = self.loading.tokenizers(stage)
        config = self._student_config(stage, tokenizers[0])
        teacher_configs = self.loading.teacher_configs(stage)
        known = self._check(stage, config, teacher_configs, tokenizers)
        model, parameters = self.loading.model(stage, config, task="causal_lm")
        length = self.loading.max_length(stage, (config, *teacher_configs))
        splits = {name: self._split(stage, name, tokenizers[0], length) for name in SPLITS}
        given = {name: split for name, split in splits.items() if split is not None}
        # tokens are compared one by one: every model of a stage reads the student's
        return TextSurvey(stage, model, tokenizers[:1], (0,) * len(indices), length, parameters, known, given)

    def read(self, survey: TextSurvey) -> None:
        """Whether the text lasts for the steps asked for, and there are as many tokens as are to be kept."""
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

    def _student_config(self, stage: ChainStage, tokenizer: data.Tokenizer) -> Any:
        student = stage.config.student
        if student.pretrained is not None or student.asset is not None:
            return self.inputs.model_config(student)
        first = next(iter(stage.teachers), stage.warm_start_teacher)
        teacher = self.loading.teacher_config(first) if first else None
        if teacher is not None:
            return self.loading.student_config(stage, teacher=teacher)
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        return dataclasses.replace(self.loading.student_config(stage, vocab_size=tokenizer.max_id + 1), **ends)

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
        shape = models.build(self.inputs.model_config(reference), task="causal_lm", dtype=self.loading.dtype)
        model, params = models.from_pretrained(
            directory,
            task="causal_lm",
            dtype=self.loading.dtype,
            param_dtype=self.loading.teacher_dtype,
            sharding=self.loading.layout(shape, teacher=True),
        )
        return LoadedTeacher(reference.label, model, params, file_digest(sorted(directory.glob("*.safetensors"))))

    def evaluate(
        self, survey: TextSurvey, model: LoadedTeacher, *, index: int, taught: bool
    ) -> dict[str, dict[str, float]]:
        """Metrics of a model on the validation and test sets of a stage; `taught`: beside its teachers."""
        loaded = [self.teacher(teacher, survey) for teacher in survey.stage.teachers] if taught else []
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
            return evaluate_text(
                survey.splits[split].eval_batches(batch_size=batch_size),
                params,
                teacher_params,
                student=model,
                teachers=teachers,
                teacher_weights=tuple(teacher.weight for teacher in survey.stage.teachers) if teachers else (),
                vocab_size=survey.vocab_size,
                mesh=mesh,
            )

        return measure

    def job(self, survey: TextSurvey) -> Job:
        """Everything a stage's training needs."""
        stage = survey.stage
        loaded = [self.teacher(teacher, survey) for teacher in stage.teachers]
        measure = self._measure(survey, survey.student, tuple(OnlineTeacher(teacher.model) for teacher in loaded))
        taught = self._taught(survey, loaded)
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
            validate=lambda params, teacher_params: measure(
                "validation", params, teacher_params if taught.temperatures is None else self._placed(loaded)
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
        tokens = config.train.batch_size // shares * survey.max_length
        return "off" if tokens < _FEW_TOKENS else "auto"

    def _initial_params(self, survey: TextSurvey) -> Params:
        return self.loading.initial_params(
            survey,
            pretrained=lambda directory: models.from_pretrained(
                directory, task="causal_lm", sharding=self.loading.spread_layout(survey.student)
            )[1],
            # of the training text, in the order of evaluation: the same in every process, and for every seed
            calibration=lambda: survey.splits["train"].eval_batches(batch_size=_CALIBRATION_ROWS),
        )
