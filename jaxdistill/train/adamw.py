"""AdamW in as few passes over memory as the compiler allows, with clipping and the skipping of bad updates inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdistill.train.rows import RowGradient
from jaxdistill.typing import Params, Scalar


class GuardedTransformation(NamedTuple):
    """Like an Optax transformation, but `update` also takes the gradient's `grad_norm` and whether all is `finite`.

    update(gradients, state, params, *, finite, grad_norm) -> (updates, state). Where `finite` is false the state is the
    old one; the updates are then meaningless and must not be applied.

    takes_rows: a leaf of `gradients` may be a `RowGradient`.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Any, Any]]
    takes_rows: bool = False


def guarded(optimizer: optax.GradientTransformation | GuardedTransformation) -> GuardedTransformation:
    """Any Optax transformation as a guarded one: its new state is selected against the old one."""
    if isinstance(optimizer, GuardedTransformation):
        return optimizer

    def update(gradients, state, params, *, finite: Scalar, grad_norm: Scalar):
        del grad_norm  # it measures what it clips itself
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes its integer counters with floats
            updates, new_state = optimizer.update(gradients, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)

    return GuardedTransformation(optimizer.init, update)


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    decay_mask: Any,
    max_grad_norm: float | None,
    mu_dtype: Any = jnp.float32,
) -> GuardedTransformation:
    """`optax.chain(clip_by_global_norm, adamw)`, to rounding, at half its cost on CPU (arXiv:1711.05101).

    Around Optax's chain, XLA's CPU compiler copies both moments and writes the clipped gradient out, which is most of
    the update's time for a large word table. Here each moment is one expression, select included, and the parameters
    are computed from the moments as they are stored: every array is read and written once, in place. Of a table whose
    gradient is a few rows (`RowGradient`) the moments fade where they lie, and those rows are added.

    Args:
      schedule: learning rate by number of updates made.
      b1, b2, eps, weight_decay: as in `optax.adamw`.
      decay_mask: params -> tree of bools, where decay applies.
      max_grad_norm: clip the gradient to this global norm; None: never.
      mu_dtype: in which the first moment is kept; all arithmetic is in the parameters' own.
    """

    def init(params: Params) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.int32(0),
            mu=jax.tree.map(lambda param: jnp.zeros_like(param, mu_dtype), params),
            nu=jax.tree.map(jnp.zeros_like, params),
        )

    def update(gradients, state, params, *, finite: Scalar, grad_norm: Scalar):
        count = state.count + 1
        with jax.numpy_dtype_promotion("standard"):
            learning_rate = jnp.asarray(schedule(state.count), jnp.float32)
        scale = jnp.float32(1)
        if max_grad_norm is not None:
            scale = jnp.where(grad_norm < max_grad_norm, scale, max_grad_norm / grad_norm)

        def moment(old, gradient, decay: float, power: int):
            by_rows = isinstance(gradient, RowGradient)
            added = (1 - decay) * ((gradient.rows if by_rows else gradient) * scale) ** power
            if by_rows:
                faded = jnp.where(finite, jnp.float32(decay), jnp.float32(1)) * old
                return gradient.add_to(faded, jnp.where(finite, added, jnp.zeros_like(added)))
            value = added + decay * old.astype(gradient.dtype)
            return jnp.where(finite, value.astype(old.dtype), old)

        mu = jax.tree.map(lambda old, g: moment(old, g, b1, 1), state.mu, gradients)
        nu = jax.tree.map(lambda old, g: moment(old, g, b2, 2), state.nu, gradients)
        powers = count.astype(jnp.float32)
        mu_correction, nu_correction = 1 / (1 - b1**powers), 1 / (1 - b2**powers)

        def change(mu, nu, param, decayed: bool):
            direction = mu.astype(param.dtype) * mu_correction / (jnp.sqrt(nu * nu_correction) + eps)
            if decayed and weight_decay:
                direction = direction + weight_decay * param
            return -learning_rate * direction

        updates = jax.tree.map(change, mu, nu, params, decay_mask(params))
        return updates, optax.ScaleByAdamState(count=jnp.where(finite, count, state.count), mu=mu, nu=nu)

    # a moment that is rounded as it is stored would be rounded twice
    return GuardedTransformation(init, update, takes_rows=jnp.dtype(mu_dtype) == jnp.float32)
