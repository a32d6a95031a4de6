"""A trained language model applied to text: how well it predicts it, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill import data, models
from jaxdistill.config.data_schema import DataConfig
from jaxdistill.data import text
from jaxdistill.data.rows import bad_rows_error
from jaxdistill.distill.teacher import OnlineTeacher
from jaxdistill.errors import DataError, ModelError
from jaxdistill.inference.encoder import load_encoder
from jaxdistill.inference.generation import continue_tokens
from jaxdistill.inference.limits import allowed_length
from jaxdistill.train.evaluate_text import as_masked, evaluate_text

_SHORTEST_WINDOW = 32


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt. `finished`: it came to an end; `token_ids`: the end token included."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool


def is_language_model(source: str | Path, *, revision: str | None = None) -> bool:
    """Whether a model directory or hub id holds a decoder.

    Raises:
      ModelError: no model there, or one that is not built here.
      ExternalError: the hub cannot be reached or does not know the id.
    """
    return isinstance(models.config_from_hf(models.resolve(source, revision=revision)), models.LlamaConfig)


class LanguageModel:
    """A model directory or hub id of a decoder, with its tokenizer.

    end_ids: tokens after which a text has ended. max_length: most tokens of a sequence.
    """

    BATCH_SIZE = 8

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        batch_size: int = BATCH_SIZE,
        max_length: int | None = None,
    ) -> None:
        """Load everything.

        Args:
          source: Hugging Face directory or hub id.
          revision: branch, tag or commit of a hub id.
          batch_size: most sequences in one forward pass.
          max_length: most tokens of a sequence (default and upper bound: the model's positions).

        Raises:
          ModelError: not a decoder, or a tokenizer that does not belong to it.
          ExternalError: the hub cannot be reached or does not know the id.
        """
        directory = models.resolve(source, revision=revision)
        self.model, self.params = models.from_pretrained(directory, task="causal_lm")
        self.source = str(source)
        self.batch_size = batch_size
        self.tokenizer = data.load_tokenizer(directory)
        data.check_vocabulary(self.tokenizer, self.model.config.vocab_size, model=self.source)
        self.positions = models.positions(self.model.config)
        self.max_length = allowed_length(max_length, positions=self.positions, source=source)
        self.end_ids = _end_ids(directory, self.model.config)

    def continuations(
        self, rows: data.Rows, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Continuation]:
        """Continue texts, each in a row of its own; what is sampled depends on the seed and the row's number alone.

        Args:
          rows: the prompts.
          max_new_tokens: at most so many; fewer where the sequence would become longer than `max_length`.
          temperature: 0: the most likely token is taken; above: one is drawn from softmax(logits / temperature).
          seed: of what is drawn.

        Raises:
          DataError: a prompt without tokens, or one that leaves no room for another token.
        """
        prompts = self._prompts(rows)
        key = jax.random.key(seed)
        found: list[Continuation] = []
        size = min(self.batch_size, 1 << max(len(prompts) - 1, 0).bit_length())  # few different shapes
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            numbers = np.zeros(size, np.uint32)
            numbers[: len(part)] = rows.row_numbers[start : start + size]
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(numbers))
            rows_ids = self._continue(part, size, keys, max_new_tokens=max_new_tokens, temperature=temperature)
            found += [self._continuation(prompt, ids) for prompt, ids in zip(part, rows_ids, strict=True)]
        return found

    def _prompts(self, rows: data.Rows) -> list[list[int]]:
        """Token ids, with what the tokenizer puts before a text but not with an end after it."""
        if not len(rows):
            return []
        ragged = self.tokenizer.encode(rows.texts[0])
        prompts = [row.tolist() for row in np.split(ragged.ids, ragged.offsets[1:-1])]
        prompts = [ids[:-1] if ids and ids[-1] in self.end_ids else ids for ids in prompts]
        problems = [
            (int(number), f"{len(ids)} tokens")
            for number, ids in zip(rows.row_numbers, prompts, strict=True)
            if not 0 < len(ids) < self.max_length
        ]
        if problems:
            advice = f"a prompt must have at least 1 token, and fewer than the {self.max_length} of a sequence"
            raise bad_rows_error(rows.source, rows.unit, problems, len(rows), advice)
        return prompts

    def _continue(
        self, prompts: Sequence[Sequence[int]], size: int, keys: Any, *, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Prompts with their continuations, in one compiled loop over a window of few different lengths."""
        longest = max(map(len, prompts)) + max_new_tokens
        window = min(max(1 << (longest - 1).bit_length(), _SHORTEST_WINDOW), self.max_length)
        ids = np.full((size, window), self.tokenizer.pad_id, np.int32)
        lengths = np.zeros(size, np.int32)
        for place, prompt in enumerate(prompts):
            ids[place, : len(prompt)] = prompt
            lengths[place] = len(prompt)
        continued, ends = continue_tokens(
            self.params,
            ids,
            lengths,
            keys,
            model=self.model,
            end_ids=np.asarray(self.end_ids, np.int32),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            sampled=temperature > 0,
        )
        rows = zip(np.asarray(continued), np.asarray(ends), strict=True)
        return [row[:end].tolist() for row, end in rows][: len(prompts)]

    def _continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> Continuation:
        added = tuple(ids[len(prompt) :])
        whole, given = self._decode(ids), self._decode(prompt)
        # of the whole, since many tokenizers drop the space with which a text begins
        written = whole.removeprefix(given) if whole.startswith(given) else self._decode(added)
        return Continuation(written, added, bool(added) and added[-1] in self.end_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


class MaskedLanguageModel:
    """A model directory or hub id of an encoder with a masked-LM head, with its tokenizer."""

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        batch_size: int = LanguageModel.BATCH_SIZE,
        max_length: int | None = None,
    ) -> None:
        """Load everything; arguments and errors as `LanguageModel`.

        Raises:
          ModelError: besides, a model without the head.
        """
        loaded = load_encoder(source, task="masked_lm", head="masked-LM head", revision=revision, max_length=max_length)
        self.source, self.batch_size, self.max_length = str(source), batch_size, loaded.max_length
        self.model, self.params, self.tokenizer = loaded.model, loaded.params, loaded.tokenizer


AnyLanguageModel: TypeAlias = LanguageModel | MaskedLanguageModel


def evaluate_on_text(
    model: AnyLanguageModel, split: text.TextSplit, *, teacher: AnyLanguageModel | None = None
) -> dict[str, float]:
    """How well a language model predicts text, and how close it is to a teacher on the same sequences.

    Args:
      model: the model.
      split: its text, tokenised by the model's tokenizer.
      teacher: a language model of the same tokens.

    Returns:
      {"perplexity", "loss", "accuracy", "tokens"}, with a teacher also "teacher_perplexity", "teacher_loss", "kl",
      "agreement" and "retention". Of a masked language model, and of masked tokens: {"pseudo_perplexity", "loss",
      "accuracy", "masked_tokens"}, with a teacher also "teacher_pseudo_perplexity", "teacher_loss", "kl" and
      "agreement".

    Raises:
      ModelError: a teacher of other tokens.
    """
    masked = model.model.task == "masked_lm"
    if teacher is None:
        alone = evaluate_text(split.eval_batches(batch_size=model.batch_size), model.params, student=model.model)
        return as_masked(alone) if masked else alone
    data.check_same_tokens(model.tokenizer, teacher.tokenizer)
    data.check_vocabulary(model.tokenizer, teacher.model.config.vocab_size, model=teacher.source)
    padded = model.model.config.vocab_size != teacher.model.config.vocab_size
    online = OnlineTeacher(teacher.model)
    metrics = evaluate_text(
        split.eval_batches(batch_size=model.batch_size),
        model.params,
        (online.prepare(teacher.params),),
        student=model.model,
        teachers=(online,),
        teacher_weights=(1.0,),
        vocab_size=model.tokenizer.max_id + 1 if padded else None,
    )
    if masked:
        return as_masked(metrics)
    return metrics | {"retention": metrics["teacher_perplexity"] / metrics["perplexity"]}


def evaluation_split(
    config: DataConfig, split: str | None, tokenizer: data.Tokenizer, *, sequence_length: int
) -> tuple[text.TextSplit, str]:
    """The text of a configuration to evaluate on, and the name of its split; arguments as `evaluation_rows`.

    Raises:
      DataError: no such split, or nothing usable in it.
    """
    name = split or ("test" if config.test else "validation")
    assert name in ("validation", "test")
    opened = text.open_split(config, name, tokenizer, sequence_length=sequence_length)
    if opened is None:
        raise DataError(f"data.{name}: the configuration has none; choose another --split, or give --data FILE")
    return opened, name


def _end_ids(directory: Path, config: Any) -> tuple[int, ...]:
    """Tokens that end a text: as generation_config.json says, or else config.json.

    Raises:
      ModelError: a file that cannot be read.
    """
    path = directory / "generation_config.json"
    ids = config.eos_token_id
    if path.is_file():
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id", ids)
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path}: not a JSON object ({error})") from error
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
