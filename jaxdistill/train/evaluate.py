"""Evaluation: logits over a data set, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill import losses
from jaxdistill.distill.teacher_cache import forward_logits
from jaxdistill.distill.terms import IGNORED_LABEL
from jaxdistill.parallel import batch_sharding, place
from jaxdistill.typing import Array, Batch, Float, Int, Params, Signals


def make_eval_step(*, student: Any, mesh: Mesh | None = None) -> Callable[[Params, Batch], Signals]:
    """f(params, batch) -> {"logits": float32 [B, C]}, compiled once per batch shape, without dropout."""

    def evaluate(params: Params, batch: Batch) -> Signals:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        placed = inputs if mesh is None else place(inputs, batch_sharding(mesh))
        return {"logits": forward_logits(params, placed, model=student, mesh=mesh)}

    return evaluate


def evaluate_logits(
    student_logits: Float[np.ndarray, "N C"] | Float[Array, "N C"],
    teacher_logits: Float[np.ndarray, "N C"] | Float[Array, "N C"] | None,
    labels: Int[np.ndarray, " N"] | None,
) -> dict[str, float]:
    """Metrics of a data set.

    Args:
      student_logits: of every example.
      teacher_logits: of the student's own teacher on the same examples (several: their mixture at T = 1), or None.
      labels: class indices, −100 where there is none; None: no labels at all.

    Returns:
      With labels: accuracy, f1 (of class 1 for two classes, else macro), loss (mean cross-entropy).
      With a teacher: kl (mean KL(teacher ‖ student) at T = 1) and agreement (share of equal predictions).

    Raises:
      ValueError: the arrays disagree in the number of examples or classes.
    """
    from sklearn.metrics import accuracy_score, f1_score

    student = np.asarray(student_logits, np.float32)
    predictions = student.argmax(-1)
    results: dict[str, float] = {}
    if labels is not None:
        labels = np.asarray(labels)
        _check_shape("labels", labels.shape, student, axes=1)
        known = labels != IGNORED_LABEL
        if known.any():
            truth, guess = labels[known], predictions[known]
            binary = student.shape[-1] == 2
            results["accuracy"] = float(accuracy_score(truth, guess))
            average = "binary" if binary else "macro"
            f1 = f1_score(truth, guess, average=average, zero_division=0)  # pyright: ignore[reportArgumentType]
            results["f1"] = float(f1)
            results["loss"] = _mean(np.asarray(_cross_entropy(student, labels.astype(np.int32)))[known])
    if teacher_logits is not None:
        teacher = np.asarray(teacher_logits, np.float32)
        _check_shape("teacher logits", teacher.shape, student, axes=2)
        results["kl"] = _mean(_kl(student, teacher))
        results["agreement"] = float(np.mean(predictions == teacher.argmax(-1)))
    return results


@jax.jit
def _cross_entropy(logits: Array, labels: Array) -> Float[Array, " N"]:
    """0 where there is no label; one program, where every operation of its own would be a dozen."""
    return losses.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL)


@jax.jit
def _kl(student: Array, teacher: Array) -> Float[Array, " N"]:
    return losses.forward_kl(student, teacher)


def _mean(values: Any) -> float:
    """Mean in float64: the host has it, and N may be large."""
    return float(np.mean(np.asarray(values), dtype=np.float64))


def _check_shape(what: str, got: tuple[int, ...], student: np.ndarray, *, axes: int) -> None:
    """The shape is that of the first `axes` axes of the student's logits."""
    if got != student.shape[:axes]:
        raise ValueError(f"{what} of shape {list(got)} do not fit student logits of shape {list(student.shape)}")
