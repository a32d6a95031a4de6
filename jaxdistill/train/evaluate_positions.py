"""Evaluation of heads on positions: logits over a data set, and what they say of its words or of its questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill import losses
from jaxdistill.data.tags import OUTSIDE, entity_scores
from jaxdistill.data.windows import SpanDataset
from jaxdistill.data.words import WordDataset
from jaxdistill.distill.teacher_cache import forward_logits
from jaxdistill.parallel import batch_sharding, place
from jaxdistill.train.answers import AnswerConfig, best_answers, normalised, squad_scores
from jaxdistill.train.evaluate import evaluate_logits
from jaxdistill.typing import Batch, Float, Params

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "p_mask")
_ROWS = 4096
"""Windows whose losses are computed together."""


def tag_logits(
    model: Any, params: Params, dataset: WordDataset, batches: Iterable[Batch], mesh: Mesh | None = None
) -> Float[np.ndarray, "P C"]:
    """A token classifier's logits at the first token of every word that has one, in their order; float32.

    Args:
      model: a `models.Model`.
      params: its parameters, placed on `mesh`'s devices.
      dataset: N sentences.
      batches: that together hold every one of them (`eval_batches`).
      mesh: devices the batches are split over; default, the device of `params`.
    """
    found = np.empty((len(dataset.heads), model.num_labels), np.float32)
    offsets = dataset.tokens.encodings[0].offsets
    edges = np.searchsorted(dataset.heads, offsets)  # of each sentence, where its words stand among all
    for ids, logits in _logits(model, params, batches, mesh):
        for row, sentence in enumerate(ids):
            if sentence >= 0:
                own = slice(edges[sentence], edges[sentence + 1])
                found[own] = logits[row, dataset.heads[own] - offsets[sentence]]
    return found


def span_logits(
    model: Any, params: Params, dataset: SpanDataset, batches: Iterable[Batch], mesh: Mesh | None = None
) -> Float[np.ndarray, "W 2 S"]:
    """A model's start and end logits of every window, −inf beyond its end; arguments as of `tag_logits`."""
    found = np.full((len(dataset), 2, int(dataset.tokens.lengths.max())), -np.inf, np.float32)
    for ids, logits in _logits(model, params, batches, mesh):
        width = min(logits.shape[-1], found.shape[-1])
        found[ids[ids >= 0], :, :width] = logits[ids >= 0, :, :width]
    return found


def _logits(
    model: Any, params: Params, batches: Iterable[Batch], mesh: Mesh | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """example_id and logits of each batch, one batch behind the device, which so never waits for the host."""
    waiting: tuple[np.ndarray, Any] | None = None
    for batch in batches:
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        placed = inputs if mesh is None else place(inputs, batch_sharding(mesh))
        following = np.asarray(batch["example_id"]), forward_logits(params, placed, model=model, mesh=mesh)
        if waiting is not None:
            yield waiting[0], jax.device_get(waiting[1])
        waiting = following
    if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])


def evaluate_tags(
    student: Float[np.ndarray, "P C"],
    teacher: Float[np.ndarray, "P C"] | None,
    dataset: WordDataset,
    names: tuple[str, ...],
) -> dict[str, float]:
    """Metrics of tags.

    A word without tokens (cut off, or dropped by the tokenizer) counts as tagged `O`; one without a tag is left out.

    Args:
      student: `tag_logits`.
      teacher: of the student's own teacher (several: of their mixture at T = 1), or None.
      dataset: the sentences.
      names: of the classes.

    Returns:
      precision, recall and f1 of entities; accuracy of words; loss (mean cross-entropy); with a teacher kl (mean
      KL(teacher ‖ student) at T = 1) and agreement (share of words tagged alike), over words that have tokens.
    """
    results = evaluate_logits(student, teacher, dataset.tags[dataset.words])
    kept = {name: results[name] for name in ("loss", "kl", "agreement") if name in results}
    truth, guess = _tags_by_sentence(student, dataset, names)
    right = sum(a == b for ours, theirs in zip(guess, truth, strict=True) for a, b in zip(ours, theirs, strict=True))
    known = sum(map(len, truth))
    return {**entity_scores(truth, guess), "accuracy": right / known if known else 0.0, **kept}


def predicted_tags(logits: Float[np.ndarray, "P C"], dataset: WordDataset, names: tuple[str, ...]) -> list[list[str]]:
    """The most likely tag of each word of each sentence; `O` for a word without tokens."""
    tags = np.full(len(dataset.tags), OUTSIDE, dtype=object)
    tags[dataset.words] = np.asarray(names, dtype=object)[logits.argmax(-1)]
    return [list(tags[begin:end]) for begin, end in zip(dataset.offsets, dataset.offsets[1:], strict=False)]


def _tags_by_sentence(
    logits: Float[np.ndarray, "P C"], dataset: WordDataset, names: tuple[str, ...]
) -> tuple[list[list[str]], list[list[str]]]:
    """True and predicted tags of the words that have a tag."""
    truth, guess = [], []
    starts = zip(predicted_tags(logits, dataset, names), dataset.offsets, strict=False)
    for predicted, begin in starts:
        own = dataset.tags[begin : begin + len(predicted)]
        truth.append([names[tag] for tag in own if tag >= 0])
        guess.append([name for name, tag in zip(predicted, own, strict=True) if tag >= 0])
    return truth, guess


def evaluate_spans(
    student: Float[np.ndarray, "W 2 S"],
    teacher: Float[np.ndarray, "W 2 S"] | None,
    dataset: SpanDataset,
    config: AnswerConfig,
) -> dict[str, float]:
    """Metrics of answers.

    Args:
      student: `span_logits`.
      teacher: of the student's own teacher (several: of their mixture at T = 1), or None.
      dataset: the windows.
      config: how answers are chosen.

    Returns:
      exact_match and f1 of the answers' texts; loss (mean cross-entropy of starts and ends over windows); with a
      teacher kl (mean KL(teacher ‖ student) at T = 1 of starts and ends) and agreement (share of questions answered
      alike).
    """
    answers = [answer.text for answer in best_answers(student, dataset, config)]
    truths = [[answer.text for answer in accepted] for accepted in dataset.rows.answers]
    results = squad_scores(answers, truths)
    labels = dataset.tokens.labels
    results["loss"] = _mean_over_windows(student, labels, losses.cross_entropy)
    if teacher is not None:
        theirs = [answer.text for answer in best_answers(teacher, dataset, config)]
        alike = [normalised(ours) == normalised(other) for ours, other in zip(answers, theirs, strict=True)]
        results["kl"] = _mean_over_windows(student, teacher, losses.forward_kl)
        results["agreement"] = float(np.mean(alike))
    return results


def _mean_over_windows(student: np.ndarray, other: np.ndarray, loss: Any) -> float:
    """Mean in float64, some windows at a time."""
    parts = [
        np.asarray(loss(jnp.asarray(student[begin : begin + _ROWS]), jnp.asarray(other[begin : begin + _ROWS])))
        for begin in range(0, len(student), _ROWS)
    ]
    return float(np.mean(np.concatenate(parts), dtype=np.float64))
