"""A stage's student as a Hugging Face directory of its own: weights, configuration, tokenizer and a model card."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jaxdistill import data, models
from jaxdistill.errors import CheckpointError, ExternalError, ModelError
from jaxdistill.export.model_card import model_card
from jaxdistill.models.convert.save import MAX_SHARD_BYTES
from jaxdistill.run_directory import (
    handed_on,
    load_summary,
    read_record,
    resolve_model,
    stage_of,
    student_directory,
)
from jaxdistill.typing import Params

DTYPES = ("float32", "bfloat16", "float16")
_GENERATION = "generation_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_Origin = tuple[Path, str] | None
"""The run directory and the key of the stage whose student is exported; None: it is none's."""


def export_stage(
    source: str | Path,
    output: str | Path,
    *,
    stage: str | None = None,
    seed: int | None = None,
    factorised: bool = False,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    force: bool = False,
) -> Path:
    """Write a student as a directory that `transformers` loads; complete or not at all.

    Args:
      source: run directory (with `stage`), RUN:STAGE, RUN/stages/STAGE, or a Hugging Face directory.
      output: the directory to make.
      stage: a stage of the run directory `source`.
      seed: of a repeated stage; default the one it handed on.
      factorised: keep a BertHash student's factorised word embedding (which only jaxdistill reads back) instead of
        the ordinary BERT it equals.
      dtype: of the weights in the file: float32, bfloat16 or float16.
      max_shard_bytes: weights that take more than this in float32 are written as several files with an index.
      force: replace a model directory that is already at `output`.

    Returns:
      `output`.

    Raises:
      CheckpointError: no such stage, or an unfinished one.
      ModelError: not a model, `factorised` of something else than BertHash, or something at `output` already.
      ExternalError: `output` cannot be written.
    """
    output = Path(output)
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    directory, origin = _locate(source, stage, seed)
    _check_output(output, directory, force=force)
    model, params = _factorised(directory, origin) if factorised else _load(directory)
    tokenizer = data.load_tokenizer(directory)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
            staged = Path(temporary) / "new"
            models.save_pretrained(
                model, params, staged, tokenizer=tokenizer, factorised=factorised, max_shard_bytes=max_shard_bytes
            )
            if dtype != "float32":
                _cast(staged, dtype)
            if model.task == "causal_lm":
                _write_generation_config(model, directory, staged)
            (staged / "README.md").write_text(_card(origin, output, model, factorised), encoding="utf-8")
            _replace(output, staged, Path(temporary) / "old")
    except OSError as error:
        raise ExternalError(f"{output}: cannot be written ({error.strerror or error}); choose another") from error
    return output


def _locate(source: str | Path, stage: str | None, seed: int | None) -> tuple[Path, _Origin]:
    """The Hugging Face directory to export, and whose student it is, if any stage's."""
    if stage is not None:
        directory = student_directory(Path(source), stage, seed=seed)
    elif seed is not None:
        raise CheckpointError("a seed was given without a stage; give the run directory and --stage NAME --seed K")
    else:
        directory = models.resolve(resolve_model(str(source)))
    directory = directory.resolve()
    return directory, stage_of(directory) if directory.name == "student" else None


def _check_output(output: Path, directory: Path, *, force: bool) -> None:
    """Never write over anything but, when told to, another model."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if output.resolve() == directory.resolve():
        raise ModelError(f"{output}: is the model itself; choose another output directory")
    if not (output / "config.json").is_file():
        raise ModelError(f"{output}: exists and is not a model directory; choose another output directory")
    if not force:
        raise ModelError(f"{output}: exists already; choose another output directory, or replace it with --force")


def _replace(output: Path, new: Path, old: Path) -> None:
    """Put `new` in the place of `output`, which goes to `old`, and comes back if that fails."""
    if output.exists():
        output.rename(old)
    try:
        new.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise


def _load(directory: Path) -> tuple[models.Model, Params]:
    """The model, for the task it was saved for, or else the one that its architecture has here."""
    decoder = isinstance(models.config_from_hf(directory), models.LlamaConfig)
    saved = models.task_from_hf(directory)
    heads = ("masked_lm", "token_classification", "question_answering")
    task = "causal_lm" if decoder else saved if saved in heads else "classification"
    return models.from_pretrained(directory, task=task)


def _factorised(directory: Path, origin: _Origin) -> tuple[models.Model, Params]:
    """A BertHash model with its table and projection apart, which a stage's student has multiplied out."""
    model, params = _load(directory)
    if model.config.model_type == "bert_hash":
        return model, params
    table = None
    if origin is not None and (record := read_record(directory.parent)) is not None:
        from jaxdistill.train.checkpoint import load_params  # Orbax, which no other export needs

        trained: Any = load_params(handed_on(directory.parent, record))
        table = trained["embeddings"].get("word_table")
    if table is None:
        raise ModelError(f"{directory}: not a BertHash model, it has no factorised form; leave --factorised out")
    config = dataclasses.replace(model.config, model_type="bert_hash", projections=int(table.shape[1]))
    return models.build(config, task=model.task), trained


def _cast(directory: Path, dtype: str) -> None:
    """Rewrite the weights in another dtype, one file after the other, and say so in the configuration."""
    import ml_dtypes
    from safetensors.numpy import load_file

    from jaxdistill.models.convert.safetensors_io import INDEX, write_tensors

    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    size = 0
    for path in sorted(directory.glob("*.safetensors")):
        tensors = {name: array.astype(numpy_dtype) for name, array in load_file(path).items()}
        size += sum(array.nbytes for array in tensors.values())
        write_tensors(tensors, directory, path.name)
    if (directory / INDEX).is_file():
        _update(directory / INDEX, metadata={"total_size": size})
    _update(directory / "config.json", dtype=dtype)


def _update(path: Path, **values: Any) -> None:
    """Replace top-level values of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_generation_config(model: models.Model, source: Path, directory: Path) -> None:
    """Where a continuation begins and ends: as the model's own file says, or else its configuration."""
    if (source / _GENERATION).is_file():
        shutil.copyfile(source / _GENERATION, directory / _GENERATION)
        return
    ids = {name: getattr(model.config, name) for name in _TOKEN_IDS}
    if known := {name: value for name, value in ids.items() if value is not None}:
        (directory / _GENERATION).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _card(origin: _Origin, output: Path, model: models.Model, factorised: bool) -> str:
    """The model card, with the chain and its numbers if the model is a run's."""
    run, key = origin or (None, "")
    summary = {} if run is None else load_summary(run)
    labels = model.config.id2label if model.task in ("classification", "token_classification") else None
    return model_card(summary, key, name=output.name, task=model.task, labels=labels, loads=not factorised)
