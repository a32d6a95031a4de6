"""A chain's steps without a weight: the same objective, step and layout as a run's, from shapes alone.

An encoder's data and tokenizers are read as a run reads them, since they decide its batches. A causal language model's
batches have one shape whatever the text, so that neither text nor tokenizer is opened: its models' configurations say
all, from a local directory's config.json, or a file given in the place of a hub id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxdistill import models
from jaxdistill.config.chain import Chain, ChainStage, ResolvedTeacher
from jaxdistill.config.model_schema import StudentConfig
from jaxdistill.errors import ConfigError, ModelError
from jaxdistill.parallel import make_mesh
from jaxdistill.stages.inputs import Inputs
from jaxdistill.stages.language_models import LanguageModels, TextSurvey
from jaxdistill.stages.loading import LoadedTeacher, Loading, Survey
from jaxdistill.stages.prepare import make_task
from jaxdistill.stages.stage_step import stage_step
from jaxdistill.train.stage_step import StageStep
from jaxdistill.typing import Batch, Params


def stage_steps(
    chain: Chain, console: Console, *, devices: Sequence[Any], model_configs: Mapping[str, Path] | None = None
) -> Iterator[tuple[Survey, StageStep]]:
    """Every stage's survey and step, in order, with parameters as shapes.

    Args:
      chain: of `build_chain`.
      console: where what the survey finds is said.
      devices: those that the run would have.
      model_configs: config.json files (or directories) by the hub id that they stand for.

    Raises:
      UserError: as a run's survey; a model whose configuration is not here.
    """
    loading = _ShapeLoading(chain, console, devices, dict(model_configs or {}))
    task = make_task(loading)
    if isinstance(task, LanguageModels) and task.kind.task == "causal_lm":
        for stage in chain.stages:
            survey = loading.surveys[stage.key] = _survey_text(loading, stage)
            yield survey, stage_step(task, survey)
        return
    for stage in chain.stages:
        loading.surveys[stage.key] = task.survey(stage)
    for survey in loading.surveys.values():
        yield survey, stage_step(task, survey)


class _ShapeInputs(Inputs):
    """Configurations from where the user says they are; nothing is downloaded for them."""

    def __init__(self, chain: Chain, model_configs: Mapping[str, Path]) -> None:
        super().__init__(chain)
        self._given = model_configs

    def model_config(self, reference: ResolvedTeacher | StudentConfig) -> Any:
        """Architecture of a given model, from its config.json alone."""
        name = reference.pretrained
        if name is None:
            return super().model_config(reference)
        path = self._given.get(name) or Path(name).expanduser()
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            raise ModelError(
                f"{name}: its config.json is not here, and a plan downloads nothing; say where it is with "
                f"--model-config {name}=FILE"
            )
        return models.config_from_hf(path)


class _ShapeLoading(Loading):
    """What the tasks ask of models, answered with `ShapeDtypeStruct`s on devices that need not be attached."""

    def __init__(
        self, chain: Chain, console: Console, devices: Sequence[Any], model_configs: Mapping[str, Path]
    ) -> None:
        super().__init__(chain, console, untrained=True)
        self.inputs = _ShapeInputs(chain, model_configs)
        self._mesh = make_mesh(chain.run.parallel, devices=devices)

    @property
    def mesh(self) -> Mesh:
        """The devices planned for."""
        return self._mesh

    def teacher(
        self,
        reference: ResolvedTeacher,
        given: Callable[[ResolvedTeacher], LoadedTeacher],
        *,
        drift: Callable[[models.Model, Params, Params], float],
        variant: Any = None,
    ) -> LoadedTeacher:
        """A teacher of its configuration, as teachers are kept."""
        config, task = self.teacher_config(reference), self.chain.run.data.task
        if reference.stage is not None:
            model = self.surveys[reference.stage].student
        else:
            model = models.build(config, task=task, dtype=self.dtype)
        shapes = jax.eval_shape(self.as_teacher, models.parameter_shapes(model))
        if (kept := self.quantisation) is not None:
            shapes = jax.eval_shape(lambda params: models.quantise(params, kept), shapes)
        return LoadedTeacher(reference.label, model, shapes, "shapes")


class _ShapeSplit:
    """Text that is not there: batches of its shape, which take no memory."""

    fingerprint = "shapes"

    pad_id = 0

    def __init__(self, length: int) -> None:
        self.sequence_length = self.labels_per_row = length

    def rows_per_epoch(self, *, seed: int = 0) -> int:
        """Nobody knows."""
        return self.row_count()

    def row_count(self) -> int:
        """Nobody knows."""
        raise ConfigError("train.epochs: how many steps an epoch has is not known without the text; write train.steps")

    def filler_batch(self, *, batch_size: int) -> Batch:
        """A batch without text, as any here."""
        return text_batch(batch_size, self.sequence_length)

    def train_iterator(self, *, batch_size: int, **_: Any) -> Any:
        """One batch, of all processes."""
        return _One(text_batch(batch_size, self.sequence_length))


class _One:
    """An iterator over one batch, which can be closed."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __next__(self) -> Batch:
        return self._batch

    def close(self) -> None:
        """Nothing is open."""


def text_batch(rows: int, length: int) -> Batch:
    """A batch as packed text comes, of zeros that share one number's memory."""
    zeros = np.broadcast_to(np.int32(0), (rows, length))
    names = ("input_ids", "segment_ids", "positions", "labels")
    return {**dict.fromkeys(names, zeros), "example_id": np.broadcast_to(np.int32(0), (rows,))}


def _survey_text(loading: Loading, stage: ChainStage) -> TextSurvey:
    """A language model's stage from its models' configurations."""
    student, teachers = stage.config.student, loading.teacher_configs(stage)
    first = teachers[0] if teachers else None
    if first is None and stage.warm_start_teacher is not None:
        first = loading.teacher_config(stage.warm_start_teacher)
    if student.pretrained is not None or student.asset is not None:
        config = loading.inputs.model_config(student)
    elif first is None and student.vocab_size is None:
        raise ConfigError(
            f"stages.{stage.name}.student.vocab_size: is the tokenizer's, and a plan opens none; write it"
        )
    else:
        config = loading.student_config(stage, teacher=first)
    loading.check_terms(stage, config, teachers, tokenizer_indices=(0,) * len(teachers))
    loading.check_start(stage, config)
    model, parameters = loading.model(stage, config, task="causal_lm")
    length = loading.max_length(stage, (config, *teachers))
    sizes = {each.vocab_size for each in (config, *teachers)}
    split: Any = _ShapeSplit(length)
    return TextSurvey(
        stage,
        model,
        (),
        (0,) * len(teachers),
        length,
        parameters,
        vocab_size=min(sizes) if len(sizes) > 1 else None,
        splits={"train": split, "validation": split},
    )
