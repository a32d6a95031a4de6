"""The pure step: teachers' forward, student's forward and backward, update and metrics, wherever its arrays lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdistill.distill import Metrics, Objective, Teacher
from jaxdistill.models.init import take
from jaxdistill.parallel import scan_first
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.train.rows import BatchRows
from jaxdistill.train.state import TrainState, apart
from jaxdistill.typing import Batch, Params, Scalar


@dataclass(frozen=True)
class StepProgram:
    """The pure step: what both strategies compile. A subclass may run it for several students (`swept`)."""

    student: Any
    teachers: tuple[Teacher, ...]
    objective: Objective
    optimizer: GuardedTransformation
    accumulate: int

    def run(
        self,
        state: TrainState,
        teacher_params: Sequence[Params],
        batch: Batch,
        *,
        split: Callable[[Batch, int], Batch],
        total: Callable[[Any], Any],
        mesh: Mesh | None,
        alone: bool,
    ) -> tuple[TrainState, Metrics]:
        """One update. `split` cuts the batch into micro-batches, `total` sums a tree over devices.

        mesh: over which the arrays are spread; None if they are all here. alone: there is one device.
        """
        counts = total(self.objective.counts(batch))
        rows = self._rows(state, batch) if alone else None
        gradients, loss, metrics = self._gradients(state, teacher_params, batch, counts, split, mesh, rows)
        gradients, loss, metrics = total((gradients, loss, metrics))
        return _update(self.optimizer, state, gradients, loss, metrics, rows)

    def run_many(
        self, state: TrainState, teacher_params: Sequence[Params], batches: Batch, count: Scalar, **how: Any
    ) -> tuple[TrainState, Metrics]:
        """`count` updates, one for each of the first of `batches` [K, B, ...]; their metrics are stacked on K."""
        return scan_first(lambda state, batch: self.run(state, teacher_params, batch, **how), state, batches, count)

    def _rows(self, state: TrainState, batch: Batch) -> BatchRows | None:
        """The rows of the student's word table that the batch reads, if the table's gradient can be theirs alone."""
        path = getattr(self.student, "word_table", None)
        if path is None or not self.optimizer.takes_rows:
            return None
        within = ("params", *path) if state.projections else path
        return BatchRows.of(within, take(state.params, path), batch["input_ids"])

    def _gradients(self, state, teacher_params, batch, counts, split, mesh, rows) -> tuple[Params, Scalar, Metrics]:
        """Gradient, loss and metrics of the batch, each a sum over its micro-batches; by `rows`, if there are any."""
        key = jax.random.fold_in(state.key, state.step)
        projected = bool(state.projections)
        by = state.trained if rows is None else rows.taken(state.trained)

        def loss_of(by: Any, part: Batch) -> tuple[Scalar, Metrics]:
            params, projections = apart(by if rows is None else rows.looked_up(by), projected=projected)
            taught = [
                teacher.signals(frozen, part, self.objective.outputs_of(index))
                for index, (teacher, frozen) in enumerate(zip(self.teachers, teacher_params, strict=True))
                if self.objective.teacher_outputs
            ]
            # the same key for every part: the model tells examples apart by their example_id
            learned = self.student.apply(params, part, self.objective.student_outputs, key)
            return self.objective(
                learned, taught, part, counts=counts, mesh=mesh, step=state.step, projections=projections
            )

        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        if self.accumulate == 1:
            (loss, metrics), gradients = value_and_grad(by, batch)
            return gradients, loss, metrics

        def body(gradients, part):
            (loss, metrics), new = value_and_grad(by, part)
            return jax.tree.map(jnp.add, gradients, new), (loss, metrics)

        zeros = jax.tree.map(jnp.zeros_like, by)
        gradients, parts = jax.lax.scan(body, zeros, split(batch, self.accumulate))
        loss, metrics = jax.tree.map(lambda values: jnp.sum(values, axis=0), parts)
        return gradients, loss, metrics


def _update(
    optimizer: GuardedTransformation,
    state: TrainState,
    gradients: Params,
    loss: Scalar,
    metrics: Metrics,
    rows: BatchRows | None,
) -> tuple[TrainState, Metrics]:
    """The next state: updated if loss and gradient are finite, else the old one counted as skipped."""
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    gradients = gradients if rows is None else rows.gradient(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained, finite=finite, grad_norm=grad_norm)
    # a select fuses into the update's own pass over the parameters; a conditional would be a second pass
    trained = jax.tree.map(lambda old, update: jnp.where(finite, old + update, old), state.trained, updates)
    params, projections = apart(trained, projected=bool(state.projections))
    skipped = (~finite).astype(jnp.int32)
    metrics = metrics | {"grad_norm": (grad_norm, jnp.float32(1))}
    metrics = jax.tree.map(lambda value: jnp.where(finite, value, jnp.zeros_like(value)), metrics)
    metrics["skipped"] = (skipped.astype(jnp.float32), jnp.float32(1))
    state = replace(
        state,
        step=state.step + 1,
        params=params,
        projections=projections,
        opt_state=opt_state,
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
    )
    return state, metrics
