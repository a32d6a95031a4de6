"""Contradictions in a `Run` that is well formed: everything that can be known to fail before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from jaxdistill.config.cache_checks import cache_problems
from jaxdistill.config.data_schema import PACKINGS, DataConfig, PromptConfig, UnlabelledConfig
from jaxdistill.config.defaults import named_sources, stage_data
from jaxdistill.config.files import unusable_directory
from jaxdistill.config.ladder import as_written, expand_ladders, ladder_problems
from jaxdistill.config.loss_checks import loss_problems
from jaxdistill.config.problems import Path as KeyPath
from jaxdistill.config.problems import Problem, shown
from jaxdistill.config.schema import PREVIOUS, Run, StageConfig, TrainConfig
from jaxdistill.config.searches import search_problems
from jaxdistill.config.shapes import derive_problems, position_problems, student_problems, teacher_problems
from jaxdistill.config.sweeps import sweep_problems
from jaxdistill.config.teachers import StageTeachers, resolve_teachers, run_order
from jaxdistill.config.warm_starts import warm_start_problems


def contradictions(run: Run) -> list[Problem]:
    """Every contradiction in a run, without looking for its files."""
    problems = [*_run_problems(run), *_data_problems(run), *ladder_problems(run)]
    expanded, written = expand_ladders(run)
    problems += [as_written(problem, run, written) for problem in _stages_problems(expanded)]
    return list(dict.fromkeys(problems))


def _stages_problems(run: Run) -> Iterator[Problem]:
    """Of stages, ladders written out, with themselves and with one another."""
    teachers, reference_problems = resolve_teachers(run)
    yield from reference_problems
    yield from _cycle_problems(run, teachers)
    if not reference_problems:
        yield from _tokenizer_problems(run, teachers)
    for index, (stage, own) in enumerate(zip(run.stages, teachers, strict=True)):
        path: KeyPath = ("stages", index)
        data = stage_data(run, stage)
        yield from student_problems(stage.student, run.data.task, (*path, "student"))
        yield from derive_problems(run, stage, own, path)
        yield from teacher_problems(run, own, path)
        yield from position_problems(run, stage, data, own, path)
        yield from warm_start_problems(run, stage, own, path)
        yield from _train_problems(stage.train, (*path, "train"))
        yield from loss_problems(run, stage, path)
        yield from cache_problems(run, stage, path)
        yield from sweep_problems(run, stage, path)
        yield from search_problems(run, stage, path)
        yield from _checkpoint_problems(stage, run.data.task, (*path, "checkpoint"))
        if stage.repeat and (repeated := _repeated(stage.repeat.seeds)):
            yield Problem((*path, "repeat", "seeds"), f"seed {repeated[0]} is given twice")


def _repeated(items: tuple[object, ...]) -> list[object]:
    return [item for item, count in Counter(items).items() if count > 1]


def _run_problems(run: Run) -> Iterator[Problem]:
    if not run.name.strip() or run.name in (".", "..") or any(sign in run.name for sign in "/\\\0"):
        message = f"got {shown(run.name)}; expected a directory name, without separators (output_dir says where)"
        yield Problem(("name",), message)
    if run.output_dir is not None and (reason := unusable_directory(run.output_dir)):
        yield Problem(("output_dir",), f"got {shown(run.output_dir)}, which {reason}; expected a directory to write in")
    cache = run.disk_cache.directory
    if cache is not None and (reason := unusable_directory(cache)):
        message = f"got {shown(cache)}, which {reason}; expected a directory to write in"
        yield Problem(("disk_cache", "directory"), message)
    for axis in ("data", "fsdp", "tensor"):
        if getattr(run.parallel, axis) == 0:
            yield Problem(("parallel", axis), "got 0; expected a number of devices, or -1 for whatever is left")
    first: dict[str, int] = {}
    for index, stage in enumerate(run.stages):
        if stage.name == PREVIOUS:
            yield Problem(("stages", index, "name"), f"'{PREVIOUS}' means the stage before; choose another name")
        elif stage.name in first:
            yield Problem(
                ("stages", index, "name"), f"'{stage.name}' is already the name of stages.{first[stage.name]}"
            )
        first.setdefault(stage.name, index)


def _cycle_problems(run: Run, teachers: list[StageTeachers]) -> Iterator[Problem]:
    names = [stage.name for stage in run.stages]
    if len(set(names)) < len(names):
        return
    _, cycles = run_order(names, [own.stages() for own in teachers])
    for cycle in cycles:
        index = names.index(cycle[0])
        asked = any(teacher.stage == cycle[1] for teacher in teachers[index].teachers)
        key = ("teacher",) if asked else ("student", "warm_start", "from_teacher")
        message = f"stages wait for each other: {' needs '.join(cycle)}; break the circle"
        yield Problem(("stages", index, *key), message)


def _tokenizer_problems(run: Run, teachers: list[StageTeachers]) -> Iterator[Problem]:
    """A run of fresh students alone has no vocabulary."""
    fresh = all(stage.student.pretrained is None and stage.student.asset is None for stage in run.stages)
    referred = [teacher for own in teachers for teacher in (*own.teachers, own.warm_start) if teacher is not None]
    if run.tokenizer is None and fresh and all(teacher.stage is not None for teacher in referred):
        message = "missing, and no given teacher or pretrained student brings one; write tokenizer: DIR_OR_HUB_ID"
        yield Problem(("tokenizer",), message)


# --- data ------------------------------------------------------------------------------------------------------------


def _data_problems(run: Run) -> Iterator[Problem]:
    """Of the run's data once, and of each stage's own keys."""
    yield from _task_problems(run)
    yield from _source_problems(run.data, ("data",), None)
    yield from _label_problems(run.data, ("data",))
    yield from _augment_problems(run.data, ("data",))
    missing = [index for index, stage in enumerate(run.stages) if stage_data(run, stage).train is None]
    for key in ("unlabelled", "augment"):
        if getattr(run.data, key) and all(stage.teacher is None for stage in run.stages):
            yield Problem(("data", key), "no stage has a teacher to label the text; remove it")
    if len(missing) == len(run.stages):
        yield Problem(("data", "train"), "missing; expected {path: FILE}, {hub: ID, split: ...} or {asset: NAME}")
    for index, stage in enumerate(run.stages):
        path: KeyPath = ("stages", index, "data")
        if index in missing and len(missing) < len(run.stages):
            yield Problem((*path, "train"), "missing, and the run's data has no train either; give one of them")
        if stage.data:
            data = stage_data(run, stage)
            yield from _source_problems(data, path, set(stage.data))
            yield from _augment_problems(data, path) if "augment" in stage.data else ()
            if not stage.data.keys().isdisjoint(("text", "label", "label_names")):
                yield from _label_problems(data, path)


_READERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("classification",): ("unlabelled", "augment", "label"),
    ("classification", "token_classification"): ("label_names", "truncate"),
    ("classification", "token_classification", "question_answering"): ("batching",),
    ("classification", "causal_lm", "masked_lm"): ("text",),
    ("causal_lm", "masked_lm"): ("packing", "sample_by", "streaming", "repeat", "workers"),
    ("masked_lm",): ("masking",),
    ("token_classification",): ("tokens", "tags"),
    ("question_answering",): (
        *("question", "context", "answers", "id", "doc_stride", "n_best", "max_answer_length", "null_threshold"),
    ),
}
"""Keys of the data by the tasks that read them; the others are read by all."""


def _task_problems(run: Run) -> Iterator[Problem]:
    """Of the task with the run's data, and with each stage's own keys."""
    task = run.data.task
    yield from _key_problems(run.data, task, ("data",), {field.name for field in dataclasses.fields(DataConfig)})
    for index, stage in enumerate(run.stages):
        yield from _key_problems(stage_data(run, stage), task, ("stages", index, "data"), set(stage.data or ()))
        if task in ("token_classification", "question_answering") and stage_data(run, stage).batching == "packed":
            own = "batching" in (stage.data or {})
            where: KeyPath = ("stages", index, "data", "batching") if own else ("data", "batching")
            yield Problem(where, f"got 'packed', which {task} has not; expected bucketed or padded")
        if "task" in (stage.data or {}) and stage_data(run, stage).task != task:
            yield Problem(("stages", index, "data", "task"), f"all stages of a run have one task, data.task: {task}")


def _key_problems(data: DataConfig, task: str, path: KeyPath, keys: set[str]) -> Iterator[Problem]:
    """Of the keys written at a path: those that only other tasks read, and values that do not suit the task."""
    neutral = DataConfig()
    for readers, read in _READERS.items():
        for key in read if task not in readers else ():
            if key in keys and getattr(data, key) != getattr(neutral, key):
                who = " and ".join(filter(None, (", ".join(readers[:-1]), readers[-1])))
                verb = "reads" if len(readers) == 1 else "read"
                yield Problem((*path, key), f"only {who} {verb} it, and data.task is {task}; remove it")
    if "text" in keys and isinstance(data.text, PromptConfig) and task != "causal_lm":
        message = f"prompt and completion are for causal_lm, data.task is {task}; expected a list"
        yield Problem((*path, "text"), message)
    elif "text" in keys and task in PACKINGS and len(data.columns) == 2 and not isinstance(data.text, PromptConfig):
        prompted = ", or {prompt: COLUMN, completion: COLUMN}" if task == "causal_lm" else ""
        yield Problem((*path, "text"), f"got two columns; expected one{prompted}")
    if task == "question_answering" and not keys.isdisjoint(("doc_stride", "max_length")):
        yield from _window_problems(data, path)
    if task == "masked_lm" and not keys.isdisjoint(("masking", "packing")):
        yield from _masking_problems(data, path)


def _window_problems(data: DataConfig, path: KeyPath) -> Iterator[Problem]:
    """Windows that would not get further through their context."""
    if data.max_length is not None and data.doc_stride >= data.max_length - 4:  # a question and its special tokens
        message = f"windows of {data.max_length} tokens (data.max_length) cannot share {data.doc_stride} tokens"
        yield Problem((*path, "doc_stride"), f"{message}; expected less, such as {data.max_length // 3}")


def _masking_problems(data: DataConfig, path: KeyPath) -> Iterator[Problem]:
    masking = data.masking
    if masking.mask + masking.random > 1 + 1e-9:
        message = f"mask and random add up to {masking.mask + masking.random:g}; expected shares of at most 1 together"
        yield Problem((*path, "masking"), message)
    if data.packing == "concat":
        message = "got 'concat', which cuts what a masked language model's separators enclose"
        yield Problem((*path, "packing"), f"{message}; expected first_fit, which fills rows as well, or none")


def _source_problems(data: DataConfig, path: KeyPath, keys: set[str] | None) -> Iterator[Problem]:
    for place, source in named_sources(data, keys):
        kinds = ("path", "hub", "asset", *(("vocabulary",) if isinstance(source, UnlabelledConfig) else ()))
        given = [name for name in kinds if getattr(source, name) not in (None, False)]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            replaced = " (a stage's source replaces the run's whole)" if path[0] == "stages" else ""
            yield Problem((*path, *place), f"got {got}; expected exactly one of {', '.join(kinds)}{replaced}")
            continue
        if isinstance(source, UnlabelledConfig):
            yield from _unlabelled_problems(data, source, (*path, *place))
        for name, owners in (("config", ["hub"]), ("revision", ["hub"]), ("split", ["hub", "asset"])):
            if getattr(source, name) is not None and given[0] not in owners:
                message = (
                    f"only for {' or '.join(owners)}, and this is {given[0]}: {getattr(source, given[0])}; remove it"
                )
                yield Problem((*path, *place, name), message)


def _unlabelled_problems(data: DataConfig, source: UnlabelledConfig, path: KeyPath) -> Iterator[Problem]:
    """Text for the teachers has the shape of the labelled text."""
    if source.vocabulary and len(data.columns) > 1:
        yield Problem((*path, "vocabulary"), f"words are single texts, but data.text has {len(data.columns)} columns")
    elif source.vocabulary and source.text is not None:
        yield Problem((*path, "text"), "a vocabulary has no columns; remove it")
    elif source.text is not None and len(source.text) != len(data.columns):
        message = f"got {len(source.text)} columns; expected {len(data.columns)}, as data.text has"
        yield Problem((*path, "text"), message)


def _augment_problems(data: DataConfig, path: KeyPath) -> Iterator[Problem]:
    augment = data.augment
    if augment is None:
        return
    if augment.mask + augment.replace > 1:
        message = f"mask and replace add up to {augment.mask + augment.replace:g}; expected probabilities of at most 1"
        yield Problem((*path, "augment"), message)
    elif not (augment.mask or augment.replace or augment.ngram):
        yield Problem((*path, "augment"), "mask, replace and ngram are all 0, so nothing would vary; remove it")


def _label_problems(data: DataConfig, path: KeyPath) -> Iterator[Problem]:
    """The columns, and the names of the classes."""
    if repeated := _repeated(data.columns):
        yield Problem((*path, "text"), f"column {shown(repeated[0])} is given twice; a pair is two columns")
    if data.label in data.columns:
        yield Problem((*path, "label"), f"column {shown(data.label)} is also a text; expected the column of the labels")
    if data.label_names is None:
        return
    if repeated := _repeated(data.label_names):
        yield Problem((*path, "label_names"), f"{shown(repeated[0])} is given twice")
    elif len(data.label_names) < 2:
        yield Problem((*path, "label_names"), f"got {shown(data.label_names)}; expected at least two classes")
    for name in data.label_names:
        if not name or name != name.strip():  # labels are read without the blanks around them
            yield Problem((*path, "label_names"), f"got {shown(name)}; expected a name without blanks around it")


# --- training --------------------------------------------------------------------------------------------------------


def _train_problems(train: TrainConfig, path: KeyPath) -> Iterator[Problem]:
    if (train.epochs is None) == (train.steps is None):
        got = "neither" if train.epochs is None else "both"
        yield Problem(path, f"got {got} of epochs and steps; expected exactly one")
    if train.batch_size % train.accumulate:
        message = f"{train.batch_size} cannot be split into {train.accumulate} equal micro-batches (train.accumulate)"
        yield Problem((*path, "batch_size"), f"{message}; expected a multiple of {train.accumulate}")
    if train.warmup >= 1 and train.warmup != int(train.warmup):
        message = f"got {train.warmup}; expected a share of the steps (below 1) or a whole number of steps"
        yield Problem((*path, "warmup"), message)
    elif train.steps is not None and train.warmup >= 1 and train.warmup > train.steps:
        message = f"got {train.warmup:.0f} steps of warm-up; expected at most train.steps, which is {train.steps}"
        yield Problem((*path, "warmup"), message)


_METRICS = {
    "classification": ("accuracy", "f1", "loss"),
    "causal_lm": ("perplexity", "loss"),
    "token_classification": ("f1", "precision", "recall", "accuracy", "loss"),
    "question_answering": ("f1", "exact_match", "loss"),
    "masked_lm": ("loss", "accuracy"),
}
"""What a checkpoint can be chosen by, of what a task measures without a teacher."""


def _checkpoint_problems(stage: StageConfig, task: str, path: KeyPath) -> Iterator[Problem]:
    """The metric that chooses the checkpoint is one that the stage has."""
    best = stage.checkpoint.best
    metrics = _METRICS[task]
    if best in ("kl", "agreement") and stage.teacher is None:
        message = f"'{best}' compares with a teacher, and the stage has none; expected {', '.join(metrics)} or last"
        yield Problem((*path, "best"), message)
    elif best is not None and best not in (*metrics, "kl", "agreement", "last"):
        expected = f"{', '.join(metrics)}, kl, agreement or last"
        yield Problem((*path, "best"), f"got '{best}', which {task} does not measure; expected {expected}")
