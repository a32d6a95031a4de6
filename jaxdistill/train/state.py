"""The state of one stage's training: everything a step reads and writes and a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxdistill.parallel import make_mesh, replicated
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.typing import Params, PRNGKeyArray, Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State of the student. The teacher is never in it.

    Attributes:
      step: int32 [], batches seen, skipped ones included.
      params: the student's parameters, float32.
      opt_state: the optimizer's state; not advanced by a skipped update.
      key: typed random key, constant over training; step n draws its dropout from fold_in(key, n).
      skipped: int32 [], updates skipped because the loss or the gradient was not finite.
      skipped_in_a_row: int32 [], how many of them immediately before this step.
    """

    step: Scalar
    params: Params
    opt_state: Any
    key: PRNGKeyArray
    skipped: Scalar
    skipped_in_a_row: Scalar


def init_state(
    model_or_params: Any,
    optimizer: optax.GradientTransformation | GuardedTransformation,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> TrainState:
    """A fresh `TrainState`, replicated over `mesh` and made under `jit`, so that the step compiles only once.

    Args:
      model_or_params: a model (its `init(key)` makes the parameters) or parameters, which are copied: the caller's
        arrays stay valid when the step donates the state.
      optimizer: whose state to initialise.
      key: typed key; one half initialises the model, the other becomes the state's key.
      mesh: default, the first device alone.
    """
    sharding = replicated(mesh if mesh is not None else make_mesh(devices=jax.devices()[:1]))

    def build(given: Params | None, key: PRNGKeyArray) -> TrainState:
        init_key, train_key = jax.random.split(key)
        # jit hands an input that is returned unchanged back as the same buffer, hence the copy
        params = model_or_params.init(init_key) if given is None else jax.tree.map(jnp.copy, given)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            key=train_key,
            skipped=jnp.int32(0),
            skipped_in_a_row=jnp.int32(0),
        )

    params = None if hasattr(model_or_params, "init") else model_or_params
    if params is not None:
        params = jax.device_put(params, sharding)
    return jax.jit(build, out_shardings=sharding)(params, jax.device_put(key, sharding))
