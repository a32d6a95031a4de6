"""Evaluation of language models: every token's loss and divergence, without whole logits, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill import losses
from jaxdistill.distill.teacher import Teacher
from jaxdistill.distill.terms import IGNORED_LABEL
from jaxdistill.errors import DataError
from jaxdistill.parallel import batch_sharding, place, replicated
from jaxdistill.typing import Array, Batch, Float, Params

_TILE_BYTES = 2**26
"""Of one float32 tile of logits."""


@partial(jax.jit, static_argnames=("student", "teachers", "teacher_weights", "vocab_size", "mesh"))
def measure_tokens(
    params: Params,
    teacher_params: Sequence[Params],
    batch: Batch,
    *,
    student: Any,
    teachers: tuple[Teacher, ...] = (),
    teacher_weights: tuple[float, ...] = (),
    vocab_size: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Float[Array, "B S"]]:
    """What a language model, and its teachers' averaged probabilities, make of every token that has a label.

    Logits are made for a few tokens at a time: [tokens, vocab] does not exist.

    Args:
      params, teacher_params: placed on the same devices.
      batch: input_ids, labels and the rest of a batch of sequences [B, S].
      student, teachers: `models.Model` and `Teacher`s of the same vocabulary.
      teacher_weights: one number per teacher.
      vocab_size: columns of the heads beyond it are padding (None: none is).
      mesh: that parameters and batch are spread over; the result is whole on every device.

    Returns:
      float32 [B, S] each, 0 where there is no label: `loss` and `correct` of the student; with teachers also
      `teacher_loss`, `kl` (teacher ‖ student) and `agreement` (the same most likely token), all at temperature 1.
    """
    spread = mesh if mesh is not None and mesh.size > 1 else None
    with nullcontext() if spread is None else jax.sharding.use_abstract_mesh(spread.abstract_mesh):
        heads = [student.apply(params, batch, ("head",))["head"]]
        heads += [t.signals(p, batch, ("head",))["head"] for t, p in zip(teachers, teacher_params, strict=True)]
    kernels = [head["kernel"].astype(head["input"].dtype) for head in heads]
    biases = [head.get("bias") for head in heads]
    rows, length = batch["labels"].shape
    size = max(1, min(length, _TILE_BYTES // (4 * rows * max(kernel.shape[1] for kernel in kernels))))
    parts = -(-length // size)

    def split(array: Array, fill: int = 0) -> Array:
        """[B, S, ...] as [parts, B, size, ...]."""
        padding = ((0, 0), (0, parts * size - length), *((0, 0),) * (array.ndim - 2))
        padded = jnp.pad(array, padding, constant_values=fill)
        return padded.reshape(rows, parts, size, *array.shape[2:]).swapaxes(0, 1)

    def measure(part: tuple[list[Array], Array]) -> dict[str, Array]:
        states, labels = part
        logits = [_logits(*head)[..., :vocab_size] for head in zip(states, kernels, biases, strict=True)]
        return _measure(logits[0], logits[1:], labels, teacher_weights)

    values = jax.lax.map(measure, ([split(head["input"]) for head in heads], split(batch["labels"], IGNORED_LABEL)))
    whole = {name: value.swapaxes(0, 1).reshape(rows, -1)[:, :length] for name, value in values.items()}
    return whole if spread is None else jax.lax.with_sharding_constraint(whole, replicated(spread))


def _logits(states: Array, kernel: Array, bias: Array | None) -> Array:
    logits = jnp.dot(states, kernel, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32).reshape(1, 1, -1)


def _measure(
    student: Array, teachers: Sequence[Array], labels: Array, teacher_weights: tuple[float, ...]
) -> dict[str, Array]:
    where = labels != IGNORED_LABEL
    best = jnp.argmax(student, -1)
    values = {
        "loss": losses.cross_entropy(student, labels, where=where),
        "correct": (where & (best == labels)).astype(jnp.float32),
    }
    if not teachers:
        return values
    teacher = teachers[0] if len(teachers) == 1 else losses.mixture_logits(teachers, weights=teacher_weights)
    return values | {
        "teacher_loss": losses.cross_entropy(teacher, labels, where=where),
        "kl": losses.forward_kl(student, teacher, where=where),
        "agreement": (where & (best == jnp.argmax(teacher, -1))).astype(jnp.float32),
    }


def evaluate_text(
    batches: Iterable[Batch],
    params: Params,
    teacher_params: Sequence[Params] = (),
    *,
    student: Any,
    teachers: tuple[Teacher, ...] = (),
    teacher_weights: tuple[float, ...] = (),
    vocab_size: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Metrics of a language model on packed text, every token with a label counted once; arguments as `measure_tokens`.

    Returns:
      perplexity = exp(loss), loss (mean cross-entropy in nats), accuracy (of the most likely token), tokens; with
      teachers also teacher_perplexity, teacher_loss, kl and agreement.

    Raises:
      DataError: no token has a label.
    """
    parts: list[dict[str, Array]] = []
    counted = 0
    for batch in batches:
        counted += int((np.asarray(batch["labels"]) != IGNORED_LABEL).sum())
        parts.append(
            measure_tokens(
                params,
                tuple(teacher_params),
                batch if mesh is None else place(batch, batch_sharding(mesh)),
                student=student,
                teachers=teachers,
                teacher_weights=teacher_weights,
                vocab_size=vocab_size,
                mesh=mesh,
            )
        )
    if not counted:
        raise DataError("no token of the text to evaluate has another after it; give longer documents")
    means = {
        name: math.fsum(float(np.sum(values, dtype=np.float64)) for values in found) / counted
        for name, found in _gathered(parts).items()
    }
    results = {"perplexity": _exp(means["loss"]), "loss": means["loss"], "accuracy": means["correct"]}
    if teachers:
        results |= {
            "teacher_perplexity": _exp(means["teacher_loss"]),
            "teacher_loss": means["teacher_loss"],
            "kl": means["kl"],
            "agreement": means["agreement"],
        }
    return results | {"tokens": float(counted)}


_OF_MASKED = {
    "perplexity": "pseudo_perplexity",
    "teacher_perplexity": "teacher_pseudo_perplexity",
    "tokens": "masked_tokens",
}


def as_masked(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a masked language model by names of their own: a token is guessed from both sides."""
    return {_OF_MASKED.get(name, name): value for name, value in metrics.items()}


def _gathered(parts: Sequence[dict[str, Array]]) -> dict[str, list[np.ndarray]]:
    """Every batch's values on the host, by name; waits for the device."""
    fetched = jax.device_get(list(parts))
    return {name: [part[name] for part in fetched] for name in fetched[0]}


def _exp(loss: float) -> float:
    """Perplexity; infinite rather than an error for a model that has diverged."""
    return math.exp(loss) if loss < 700 else math.inf
