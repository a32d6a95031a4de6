"""What every task of a chain shares: which model each stage has, its tokenizers, its teachers and where it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from jaxdistill import data, models
from jaxdistill.config import fingerprint
from jaxdistill.config.chain import Chain, ChainStage, ResolvedTeacher
from jaxdistill.distill.layer_maps import describe_layers
from jaxdistill.distill.objective import Objective, make_objective
from jaxdistill.distill.shard_files import StoredRows
from jaxdistill.distill.term_checks import check_terms, reads_logits
from jaxdistill.distill.warm_start import check_warm_start, warm_start
from jaxdistill.errors import ConfigError, ModelError
from jaxdistill.models.axes import check_mesh, param_shardings
from jaxdistill.parallel import check_divisible, make_mesh
from jaxdistill.run_directory import handed_on, read_record
from jaxdistill.stages.inputs import Inputs, is_pretrained
from jaxdistill.train.checkpoint import load_params
from jaxdistill.train.job import Job
from jaxdistill.typing import Batch, Params


@dataclass(frozen=True)
class Survey:
    """What is known of a stage before any weight is loaded."""

    stage: ChainStage
    student: models.Model
    tokenizers: tuple[data.Tokenizer, ...]
    teacher_tokenizer_indices: tuple[int, ...]
    max_length: int
    parameters: int

    def tokenizer_index(self, reference: ResolvedTeacher) -> int | None:
        """Which tokenizer one of the stage's teachers reads, whatever its weight; None: it has no such teacher."""
        for teacher, index in zip(self.stage.teachers, self.teacher_tokenizer_indices, strict=True):
            if dataclasses.replace(teacher, weight=reference.weight) == reference:
                return index
        return None


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in memory. `identity` is the fingerprint of its weights; `measurable`: it has a head for the task."""

    name: str
    model: models.Model
    params: Params
    identity: str
    measurable: bool = True


def stage_objective(stage: ChainStage, student: models.Model, teachers: Sequence[Any], **own: Any) -> Objective:
    """The objective of a stage's terms, its models being known; `teachers`: anything with a `model`.

    `own`: arguments of `make_objective` that the task decides.
    """
    configs = [model.config for model in (student, *(teacher.model for teacher in teachers))]
    return make_objective(
        stage.terms,
        tuple(teacher.weight for teacher in stage.teachers),
        depths=[config.num_hidden_layers for config in configs],
        widths=[config.hidden_size for config in configs],
        teacher_choice=stage.config.teacher_choice,
        **own,
    )


class Loading:
    """Resolves and loads the models of one chain; `surveys` fills up as stages are surveyed, `caches` as they open."""

    def __init__(self, chain: Chain, console: Console, *, untrained: bool) -> None:
        """`untrained`: stand in for stages that have not been trained with fresh models of their shape."""
        self.chain = chain
        self.console = console
        self.untrained = untrained
        self.inputs = Inputs(chain)
        self.surveys: dict[str, Any] = {}
        self.caches: dict[Path, StoredRows] = {}
        self._teachers: dict[tuple[ResolvedTeacher, Any], LoadedTeacher] = {}

    @property
    def dtype(self) -> Any:
        """dtype of the arithmetic."""
        return jax.numpy.dtype(self.chain.run.precision.compute)

    def as_teacher(self, params: Params) -> Params:
        """Parameters in the dtype that teachers are kept in."""
        dtype = self.teacher_dtype
        if all(leaf.dtype == dtype for leaf in jax.tree.leaves(params)):
            return params
        # under jit: an array that other processes hold parts of cannot be converted any other way
        return jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree))(params)

    @property
    def teacher_dtype(self) -> Any:
        """dtype that teachers' parameters are kept in, as far as they are not quantised."""
        precision = self.chain.run.precision
        quantised = precision.teacher in ("int8", "fp8")
        return jax.numpy.dtype(precision.compute if quantised or precision.teacher is None else precision.teacher)

    @property
    def teacher_precision(self) -> str:
        """How exactly teachers answer, in words."""
        kept = self.quantisation
        weights = f"{self.teacher_dtype} parameters" if kept is None else models.describe_quantisation(kept)
        return f"{weights}, {self.dtype} arithmetic"

    @property
    def quantisation(self) -> models.Quantisation | None:
        """How teachers are quantised, if they are."""
        kept = self.chain.run.precision.teacher
        return kept if kept in ("int8", "fp8") else None

    @property
    def mesh(self) -> Mesh:
        """The devices of the run."""
        return make_mesh(self.chain.run.parallel)

    def layout(self, model: models.Model, *, teacher: bool = False, like: Params | None = None) -> Any:
        """Where a model's parameters lie on the mesh; those `like` which they are may be quantised."""
        return param_shardings(model, self.mesh, self.chain.run.parallel.teacher if teacher else "same", like=like)

    def spread_layout(self, model: models.Model, *, teacher: bool = False) -> Any:
        """The same where devices share the parameters; None where each of them holds them all."""
        shared = self.mesh.shape["fsdp"] * self.mesh.shape["tensor"] > 1
        return self.layout(model, teacher=teacher) if shared else None

    def tokenizers(self, stage: ChainStage) -> tuple[tuple[data.Tokenizer, ...], tuple[int, ...]]:
        """The distinct tokenizers of a stage, the student's own first, and which of them each teacher reads."""
        tokenizers = [self.inputs.tokenizer(stage)]
        indices = []
        for teacher in stage.teachers:
            theirs = self.inputs.teacher_tokenizer(teacher)
            known = [tokenizer.fingerprint for tokenizer in tokenizers]
            if theirs.fingerprint not in known:
                tokenizers.append(theirs)
            indices.append(known.index(theirs.fingerprint) if theirs.fingerprint in known else len(known))
        return tuple(tokenizers), tuple(indices)

    def teacher_config(self, teacher: ResolvedTeacher) -> Any:
        """The configuration of a given model, or of an earlier stage's student."""
        if teacher.stage is None:
            return self.inputs.model_config(teacher)
        return self.surveys[teacher.stage].student.config

    def teacher_configs(self, stage: ChainStage) -> list[Any]:
        """Those of all the stage's teachers."""
        return [self.teacher_config(teacher) for teacher in stage.teachers]

    def student_config(self, stage: ChainStage, **known: Any) -> Any:
        """The configuration of a fresh student; arguments as `models.student_config`.

        Raises:
            ConfigError: it cannot be built.
        """
        try:
            return models.student_config(stage.config.student, **known)
        except (ModelError, ConfigError) as error:
            raise ConfigError(f"stages.{stage.name}.student: {error}") from error

    def model(self, stage: ChainStage, config: Any, *, task: str) -> tuple[models.Model, int]:
        """The student of that configuration, and how many parameters it has; the devices can share both it and a batch.

        Raises:
            ConfigError: they cannot.
        """
        model = models.build(config, task=task, dtype=self.dtype, remat=stage.config.train.remat)
        train = stage.config.train
        try:
            check_mesh(model, self.mesh)
            for theirs in self.teacher_configs(stage):
                check_mesh(models.build(theirs, task=task), self.mesh, self.chain.run.parallel.teacher)
            check_divisible(train.batch_size, self.mesh, accumulate=train.accumulate)
        except ConfigError as error:
            raise ConfigError(f"stages.{stage.name}: {error}") from error
        return model, models.parameter_count(models.parameter_shapes(model))

    def max_length(self, stage: ChainStage, configs: Sequence[Any]) -> int:
        """Tokens of a stage's sequences at most: what is written, else what all its models have positions for."""
        return stage.data.max_length or min(models.positions(config) for config in configs)

    def check_sizes(self, stage: ChainStage, checked: Iterable[tuple[str, Any, data.Tokenizer]]) -> None:
        """Vocabulary and positions of each model (what it is called, its configuration, the tokenizer it reads).

        Raises:
            ModelError: an embedding without rows for all tokens.
            ConfigError: sequences longer than a model's positions.
        """
        for what, config, tokenizer in checked:
            data.check_vocabulary(tokenizer, config.vocab_size, model=what)
            positions = models.positions(config)
            if stage.data.max_length is not None and stage.data.max_length > positions:
                raise ConfigError(
                    f"data.max_length: {stage.data.max_length} tokens, but {what} has {positions} positions; set "
                    f"data.max_length={positions} or less"
                )

    def check_start(self, stage: ChainStage, student: Any) -> None:
        """Whether a student of that configuration can start from whom it is to.

        Raises:
            ModelError: it cannot.
        """
        start = stage.config.student.warm_start
        if start is None or stage.warm_start_teacher is None:
            return
        try:
            check_warm_start(student, self.teacher_config(stage.warm_start_teacher), start)
        except ModelError as error:
            raise ModelError(f"stages.{stage.name}.student: {error}") from error

    def check_terms(
        self,
        stage: ChainStage,
        student: Any,
        teachers: Sequence[Any],
        *,
        tokenizer_indices: Sequence[int],
    ) -> None:
        """What the terms of a stage need of its models; which layers they compare is said."""
        configs = (student, *teachers)
        length = self.max_length(stage, configs)
        check_terms(stage, student, teachers, tokenizer_indices=tokenizer_indices, max_length=length)
        for line in describe_layers(stage.terms, [config.num_hidden_layers for config in configs]):
            self.console.print(f"{stage.key}: {line}", highlight=False)
        followed = any(other.begins == stage.key for other in self.chain.stages)
        if not followed and not reads_logits(stage.terms):
            self.console.print(
                f"{stage.key}: no term reads logits, so the output layer stays as it begins; a phase after this one "
                "could train it"
            )

    def teacher(
        self,
        reference: ResolvedTeacher,
        given: Callable[[ResolvedTeacher], LoadedTeacher],
        *,
        drift: Callable[[models.Model, Params, Params], float],
        variant: Any = None,
    ) -> LoadedTeacher:
        """A teacher, loaded once: an earlier stage's student, or what `given` loads, once for each `variant`.

        `drift` measures the mean KL of a quantised teacher (its model, the parameters as they were, and quantised).

        Raises:
            ModelError: it is too large.
        """
        key = (dataclasses.replace(reference, weight=1.0), variant)
        if key not in self._teachers:
            loaded = given(reference) if reference.stage is None else self.load_stage(reference, spread=True)
            params = self.as_teacher(loaded.params)
            if self.quantisation is not None:
                params = self._quantised(loaded, params, self.quantisation, drift)
            self._teachers[key] = dataclasses.replace(loaded, params=params)
        return self._teachers[key]

    def _quantised(
        self, loaded: LoadedTeacher, params: Params, kind: models.Quantisation, drift: Callable[..., float]
    ) -> Params:
        """Quantised parameters whose answers are close enough to those they were made from."""
        quantised = jax.jit(models.quantise, static_argnums=1)(params, kind)
        if self.untrained and loaded.identity == "untrained":
            return quantised
        found, bound = drift(loaded.model, params, quantised), self.chain.run.precision.max_drift
        what = (
            f"teacher {loaded.name}: {models.describe_quantisation(kind)}, mean KL {found:.2e} nats from {self.dtype}"
        )
        if not found <= bound:
            raise ModelError(
                f"{what}, more than precision.max_drift={bound:g}; write precision.teacher: bfloat16, or raise "
                "precision.max_drift"
            )
        self.console.print(f"{what} (at most {bound:g})", highlight=False)
        return quantised

    def job(self, survey: Survey, loaded: Sequence[LoadedTeacher], *, data: Sequence[str], **own: Any) -> Job:
        """A stage's job: what is the same whatever the task, and the task's `own` fields.

        `loaded`: its teachers. `data`: fingerprints of what is trained and chosen on.
        """
        stage, run = survey.stage, self.chain.run
        start = None if stage.begins is None else read_record(self.chain.stage(stage.begins).directory)
        return Job(
            title=stage.key,
            directory=stage.directory,
            config=stage.config,
            seed=stage.seed,
            student=survey.student,
            parallel=run.parallel,
            precision=run.precision,
            logging=run.logging,
            run_name=f"{run.name}/{stage.key}",
            fingerprints={
                "student": fingerprint(dataclasses.asdict(survey.student.config)),
                "teacher": fingerprint([teacher.identity for teacher in loaded]),
                "tokenizer": fingerprint([tokenizer.fingerprint for tokenizer in survey.tokenizers]),
                "data": fingerprint(list(data)),
                **({} if start is None else {"start": start["identity"]}),
            },
            **own,
        )

    def load_stage(self, reference: ResolvedTeacher, *, spread: bool = False) -> LoadedTeacher:
        """The student that a finished stage hands on; `spread`: laid out as a teacher as it is read, else whole."""
        assert reference.stage is not None
        stage = self.chain.stage(reference.stage)
        model = self.surveys[reference.stage].student
        record = read_record(stage.directory)
        if record is None and self.untrained:
            return LoadedTeacher(reference.stage, model, jax.jit(model.init)(jax.random.key(stage.seed)), "untrained")
        assert record is not None, f"{stage.key} has not finished"
        sharding = self.spread_layout(model, teacher=True) if spread else None
        params = load_params(handed_on(stage.directory, record), sharding=sharding)
        return LoadedTeacher(reference.stage, model, params, record["identity"])

    def initial_params(
        self,
        survey: Survey,
        *,
        pretrained: Callable[[Path], Params],
        calibration: Callable[[], Iterable[Batch]] | None = None,
    ) -> Params:
        """The student's parameters at step 0: the phase before's, or pretrained or fresh, warm-started where asked.

        `calibration` makes batches on which a teacher's widths are weighed, where a warm start asks for that.
        """
        stage, student = survey.stage, survey.stage.config.student
        if stage.begins is not None:
            return self.load_stage(ResolvedTeacher(stage=stage.begins)).params
        params = pretrained(self.inputs.directory(student)) if is_pretrained(student) else self._fresh(survey)
        if student.warm_start is None:
            return params
        assert stage.warm_start_teacher is not None
        model, source = self._warm_start_source(survey, stage.warm_start_teacher)
        params, lines = warm_start(survey.student, params, model, source, student.warm_start, calibration=calibration)
        for line in lines:
            self.console.print(f"{stage.key}: {line}")
        return params

    def pretrained(self, survey: Survey, directory: Path, **options: Any) -> Params:
        """A student's given parameters, read with `options`; what `directory` does not hold is drawn, and said."""
        reports: list[models.LoadReport] = []
        task, seed = survey.student.task, survey.stage.seed
        _, params = models.from_pretrained(directory, task=task, seed=seed, report=reports.append, **options)
        for line in filter(None, map(str, reports)):
            self.console.print(f"{survey.stage.key}: {line}", highlight=False)
        return params

    def _fresh(self, survey: Survey) -> Params:
        """Drawn leaf by leaf into the layout of training, where that is more than a copy for every device."""
        key, layout = jax.random.key(survey.stage.seed), self.spread_layout(survey.student)
        if layout is None:
            return jax.jit(survey.student.init)(key)
        return models.init_placed(survey.student, key, layout)

    def _warm_start_source(self, survey: Survey, reference: ResolvedTeacher) -> tuple[models.Model, Params]:
        """The model that layers and embeddings are copied from: unlike a teacher, it needs no classifier.

        Spread as a student is, unless it is looked into as well, which takes all of it in one place.
        """
        start = survey.stage.config.student.warm_start
        copied = start is not None and start.width is None and start.embeddings != "svd"
        if reference.stage is not None:
            source = self.load_stage(reference, spread=copied)
            return source.model, source.params
        task, directory = survey.student.task, self.inputs.directory(reference)
        sharding = self.spread_layout(models.build(self.inputs.model_config(reference), task=task)) if copied else None
        reports: list[models.LoadReport] = []
        model, params = models.from_pretrained(directory, task=task, sharding=sharding, report=reports.append)
        return model, {name: leaf for name, leaf in params.items() if name not in reports[0].fresh}
