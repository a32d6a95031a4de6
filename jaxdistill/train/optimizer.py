"""A stage's optimizer: AdamW, its learning-rate schedule, and what it does not decay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxdistill.config.schema import TrainConfig
from jaxdistill.errors import ConfigError
from jaxdistill.train.adamw import GuardedTransformation, adamw
from jaxdistill.typing import Params


def build_optimizer(train: TrainConfig, total_steps: int) -> tuple[GuardedTransformation, optax.Schedule]:
    """Clipping by global norm (if any) and AdamW with decoupled decay (arXiv:1711.05101), and its schedule.

    Args:
      train: a stage's training configuration.
      total_steps: updates of the stage; the schedule ends there.

    Returns:
      (transformation, schedule): the schedule maps the number of updates made to the learning rate of the next.

    Raises:
      ConfigError: the warm-up is as long as the stage.
    """
    schedule = build_schedule(train, total_steps)
    optimizer = adamw(
        schedule,
        b1=train.b1,
        b2=train.b2,
        eps=train.eps,
        weight_decay=train.weight_decay,
        decay_mask=decay_mask,
        max_grad_norm=train.max_grad_norm,
        mu_dtype=jnp.dtype(train.moment),
    )
    return optimizer, schedule


def build_schedule(train: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up to the learning rate, then `constant`, `linear` to 0 or `cosine` to 0 at `total_steps`.

    The first update already moves: of w warm-up updates, number i (from 0) has (i + 1)/w of the learning rate.
    """
    peak = train.learning_rate
    warmup = round(train.warmup * total_steps) if train.warmup < 1 else round(train.warmup)
    if warmup and warmup >= total_steps:
        raise ConfigError(
            f"train.warmup: {warmup} warm-up steps do not fit into a stage of {total_steps}; "
            "write a share below 1, or fewer steps"
        )
    rest = total_steps - warmup
    match train.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
    if not warmup:
        return after
    before = optax.linear_schedule(peak / warmup, peak + peak / warmup, warmup)
    return optax.join_schedules([before, after], [warmup])


def decay_mask(params: Params) -> Params:
    """True where weight decay applies: everything but biases and the scales of norms.

    Decided by name: layers are stacked, so a stack of biases is two-dimensional too.
    """

    def decays(path, _) -> bool:
        name = str(path[-1].key)
        return not (name == "scale" or name.endswith("bias"))

    return jax.tree_util.tree_map_with_path(decays, params)
