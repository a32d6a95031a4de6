"""Tasks whose labels are at positions: tags of words, starts and ends of answers. What is the same for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from jaxdistill import data, losses, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.distill.positions import labelled
from jaxdistill.distill.teacher import OnlineTeacher
from jaxdistill.distill.teacher_cache import forward_logits
from jaxdistill.parallel import batch_sharding, place, replicate, whole_batches
from jaxdistill.stages.encoders import Encoders, EncoderSurvey, Labels, calibration_batch, mixture, truncates
from jaxdistill.stages.inputs import SPLITS, reading
from jaxdistill.stages.loading import LoadedTeacher, Loading
from jaxdistill.train.job import Job
from jaxdistill.typing import Params


class Corpus(Protocol):
    """The rows of every split as read, and the labels they have, if any."""

    @property
    def splits(self) -> dict[str, Any]: ...
    @property
    def labels(self) -> Labels | None: ...


class Dataset(Protocol):
    """One split as tokens."""

    @property
    def tokens(self) -> data.TokenizedDataset: ...
    @property
    def fingerprint(self) -> str: ...


C = TypeVar("C", bound=Corpus)
D = TypeVar("D", bound=Dataset)


class Kind(Protocol[C, D]):
    """What differs between tasks of positions.

    Attributes:
      task: its name.
    """

    @property
    def task(self) -> str: ...

    def read(self, config: DataConfig, loading: Loading) -> C:
        """Every split of a data configuration, checked."""
        ...

    def tokenize(
        self, corpus: C, split: str, tokenizer: data.Tokenizer, config: DataConfig, *, max_length: int, truncate: bool
    ) -> D:
        """One split as tokens."""
        ...

    def logits(self, model: Any, params: Params, dataset: D, batches: Any, mesh: Any) -> np.ndarray:
        """A model's logits wherever they are measured."""
        ...

    def measure(
        self, student: np.ndarray, teacher: np.ndarray | None, dataset: D, corpus: C, config: DataConfig
    ) -> dict[str, float]:
        """Metrics of such logits, beside a teacher's if there is one."""
        ...


@dataclass(frozen=True)
class PositionSurvey(EncoderSurvey):
    """A stage with its data as read."""

    corpus: Any


class OverPositions(Generic[C, D]):
    """Surveys, jobs and measurements of a chain of models for one such task."""

    def __init__(self, loading: Loading, kind: Kind[C, D]) -> None:
        self.loading = loading
        self.kind = kind
        self.encoders = Encoders(loading, kind.task)
        self._corpora: dict[str, C] = {}
        self._datasets: dict[tuple[Any, ...], D] = {}
        self._logits: dict[tuple[str, str], np.ndarray] = {}

    # --- before anything is loaded -----------------------------------------------------------------------------------

    def survey(self, stage: ChainStage) -> PositionSurvey:
        """Models, tokenizers and data of a stage, compared with each other."""
        tokenizers, indices = self.loading.tokenizers(stage)
        for other in tokenizers[1:]:  # labels are at the student's tokens: every model of the stage reads those
            data.check_same_tokens(tokenizers[0], other)
        same = (0,) * len(indices)
        corpus = self._corpus(stage.data)
        config = self.encoders.student_config(stage, tokenizers[0], corpus.labels)
        teacher_configs = self.loading.teacher_configs(stage)
        self.encoders.check(stage, config, teacher_configs, tokenizers[:1], same, corpus.labels)
        length = self.loading.max_length(stage, (config, *teacher_configs))
        truncate = truncates(stage.data)
        model, parameters = self.loading.model(stage, config, task=self.kind.task)
        return PositionSurvey(stage, model, tokenizers[:1], same, length, parameters, corpus.labels, truncate, corpus)

    def _corpus(self, config: DataConfig) -> C:
        """What the sources hold, read once; the rows left out are told."""
        key = fingerprint(reading(config))
        if key not in self._corpora:
            self._corpora[key] = self.kind.read(config, self.loading)
            skipped = {rows.source: (rows.skipped, rows.unit) for rows in self._corpora[key].splits.values()}
            for source, (count, unit) in skipped.items():
                if count:
                    self.loading.console.print(f"{source}: {count:,} bad {unit}(s) left out", highlight=False)
        return self._corpora[key]

    def read(self, survey: PositionSurvey) -> None:
        """Tokenise all of a stage's data: what does not fit is found now."""
        for split in SPLITS:
            self.dataset(survey, split)

    # --- when a stage's turn has come --------------------------------------------------------------------------------

    def dataset(self, survey: PositionSurvey, split: str) -> D | None:
        """One split of a stage's data, tokenised; None if there is none."""
        if split not in survey.corpus.splits:
            return None
        config, tokenizer = survey.stage.data, survey.tokenizers[0]
        key = (fingerprint(reading(config)), split, tokenizer.fingerprint, survey.max_length, survey.truncate)
        if key not in self._datasets:
            self._datasets[key] = self.kind.tokenize(
                survey.corpus, split, tokenizer, config, max_length=survey.max_length, truncate=survey.truncate
            )
            if cut := self._datasets[key].tokens.truncated:
                source, length = survey.corpus.splits[split].source, survey.max_length
                self.loading.console.print(f"{source}: {cut:,} cut to {length} tokens ({split})", highlight=False)
        return self._datasets[key]

    def teacher(self, reference: ResolvedTeacher, survey: PositionSurvey) -> LoadedTeacher:
        """One teacher: an earlier stage's checkpoint, or a given model whose head must be whole."""
        return self.encoders.teacher(
            reference,
            survey.labels,
            drift=lambda model, params, quantised: self._drift(survey, model, (params, quantised)),
        )

    def _drift(self, survey: PositionSurvey, model: models.Model, params: tuple[Params, Params]) -> float:
        """Mean KL of what the second parameters answer from what the first do, on a batch of validation data."""
        dataset, mesh = self.dataset(survey, "validation"), self.loading.mesh
        assert dataset is not None
        batch = place(calibration_batch(dataset.tokens, mesh), batch_sharding(mesh))
        exact, quantised = (forward_logits(replicate(each, mesh), batch, model=model, mesh=mesh) for each in params)
        where = labelled(batch)
        return float(losses.masked_mean(losses.forward_kl(quantised, exact, where=where), where))

    def evaluate(
        self, survey: PositionSurvey, model: LoadedTeacher, *, index: int, taught: bool
    ) -> dict[str, dict[str, float]]:
        """Metrics of a model on the validation and test sets of a stage; `taught`: beside its teachers."""
        results = {}
        for split in ("validation", "test"):
            if (dataset := self.dataset(survey, split)) is None:
                continue
            logits = self._kept_logits(model, dataset, survey)
            theirs = self._mixture(survey, dataset) if taught else None
            results[split] = self.kind.measure(logits, theirs, dataset, survey.corpus, survey.stage.data)
        return results

    def _kept_logits(self, model: LoadedTeacher, dataset: D, survey: PositionSurvey) -> np.ndarray:
        """A finished model's logits on a data set, computed once for all stages that ask."""
        key = (model.identity, dataset.fingerprint)
        if key not in self._logits:
            params = place(model.params, self.loading.layout(model.model, teacher=True, like=model.params))
            self._logits[key] = self._computed(survey, model.model, params, dataset)
        return self._logits[key]

    def _computed(self, survey: PositionSurvey, model: Any, params: Params, dataset: D) -> np.ndarray:
        mesh = self.loading.mesh
        batch_size = whole_batches(survey.stage.config.evaluate.batch_size, mesh)
        batches = data.eval_batches(dataset.tokens, batch_size=batch_size)
        return self.kind.logits(model, params, dataset, batches, mesh)

    def _mixture(self, survey: PositionSurvey, dataset: D) -> np.ndarray | None:
        """Logits of the teachers' averaged probabilities at temperature 1 on a data set; None without a teacher."""
        loaded = [self.teacher(teacher, survey) for teacher in survey.stage.teachers]
        return mixture(survey.stage, [self._kept_logits(teacher, dataset, survey) for teacher in loaded])

    def job(self, survey: PositionSurvey) -> Job:
        """Everything a stage's training needs."""
        train, validation = self.dataset(survey, "train"), self.dataset(survey, "validation")
        assert train is not None
        assert validation is not None
        loaded = [self.teacher(teacher, survey) for teacher in survey.stage.teachers]
        return self.encoders.job(
            survey,
            loaded,
            train.tokens,
            teachers=[OnlineTeacher(teacher.model) for teacher in loaded],
            teacher_params=[teacher.params for teacher in loaded],
            data_fingerprints=[train.fingerprint, validation.fingerprint],
            validate=self._validation(survey, validation),
        )

    def _validation(self, survey: PositionSurvey, dataset: D) -> Callable[[Params, Any], dict[str, float]]:
        """The measurement that chooses checkpoints; the teachers' logits are computed once, when it is first made."""

        def validate(params: Params, _: Any) -> dict[str, float]:
            logits = self._computed(survey, survey.student, params, dataset)
            theirs = self._mixture(survey, dataset)
            return self.kind.measure(logits, theirs, dataset, survey.corpus, survey.stage.data)

        return validate
