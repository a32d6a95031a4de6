"""What applying a trained encoder takes, whatever its head: model, tokenizer, and batches of few different shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxdistill import data, models
from jaxdistill.errors import ModelError
from jaxdistill.inference.limits import allowed_length
from jaxdistill.typing import Params


@dataclass(frozen=True)
class LoadedEncoder:
    """A model with its tokenizer. max_length: most tokens of a sequence."""

    source: str
    model: models.Model
    params: Params
    tokenizer: data.Tokenizer
    max_length: int

    def batches(self, dataset: data.TokenizedDataset, *, batch_size: int) -> data.EvalBatches:
        """All examples, in batches of lengths that do not depend on them: a stream must not compile for every chunk."""
        size = min(batch_size, 1 << (len(dataset) - 1).bit_length())
        powers = range(3, max(3, self.max_length.bit_length()) + 1)
        lengths = sorted({min(1 << power, self.max_length) for power in powers})
        return data.eval_batches(dataset, batch_size=size, lengths=lengths)


def load_encoder(
    source: str | Path, *, task: str, head: str, revision: str | None = None, max_length: int | None = None
) -> LoadedEncoder:
    """A model directory or hub id whose head for `task` (called `head` in messages) has been trained.

    Raises:
      ModelError: it has no such head, or a tokenizer that does not belong to it; max_length beyond its positions.
      ExternalError: the hub cannot be reached or does not know the id.
    """
    directory = models.resolve(source, revision=revision)
    reports: list[models.LoadReport] = []
    model, params = models.from_pretrained(directory, task=task, report=reports.append)
    if reports[0].newly_initialised:
        raise ModelError(
            f"{source}: has no trained {head} ({', '.join(reports[0].newly_initialised)} missing); train one "
            f"with `jaxdistill run`, in a stage with student: {{pretrained: {source}}}"
        )
    tokenizer = data.load_tokenizer(directory)
    data.check_vocabulary(tokenizer, model.config.vocab_size, model=str(source))
    longest = allowed_length(max_length, positions=models.positions(model.config), source=source)
    return LoadedEncoder(str(source), model, params, tokenizer, longest)


def task_of(source: str | Path, *, revision: str | None = None) -> str:
    """What a model directory or hub id is for: an encoder without a head of another task's counts as a classifier.

    Raises:
      ModelError: no model there, or one that is not built here.
      ExternalError: the hub cannot be reached or does not know the id.
    """
    directory = models.resolve(source, revision=revision)
    if isinstance(models.config_from_hf(directory), models.LlamaConfig):
        return "causal_lm"
    saved = models.task_from_hf(directory)
    others = ("masked_lm", "token_classification", "question_answering")
    return saved if saved in others else "classification"
