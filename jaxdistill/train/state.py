"""The state of one stage's training: everything a step reads and writes and a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxdistill.distill.projections import PROJECTION_AXES, Projections, init_projections
from jaxdistill.models import Model
from jaxdistill.models.axes import param_shardings
from jaxdistill.parallel import make_mesh, place, replicated
from jaxdistill.parallel.rules import named_sharding
from jaxdistill.train.adamw import GuardedTransformation
from jaxdistill.typing import Params, PRNGKeyArray, Scalar

_PROJECTIONS_KEY = 0x7FFFFFFF
"""Folded into a state's key for its projections; no training has a step of that number."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State of the student. The teacher is never in it.

    Attributes:
      step: int32 [], batches seen, skipped ones included.
      params: the student's parameters, float32.
      opt_state: the optimizer's state, of `trained`; not advanced by a skipped update.
      key: typed random key, constant over training; step n draws its dropout from fold_in(key, n).
      skipped: int32 [], updates skipped because the loss or the gradient was not finite.
      skipped_in_a_row: int32 [], how many of them immediately before this step.
      projections: the loss's own matrices, {term: {teacher: [P, D_s, D_t]}}, trained like params; {} if it has none.
    """

    step: Scalar
    params: Params
    opt_state: Any
    key: PRNGKeyArray
    skipped: Scalar
    skipped_in_a_row: Scalar
    projections: Params = field(default_factory=dict)

    @property
    def trained(self) -> Any:
        """What the optimizer updates, all together: the parameters, and the projections if there are any."""
        return _together(self.params, self.projections)


def apart(trained: Any, *, projected: bool) -> tuple[Params, Params]:
    """(params, projections) of `TrainState.trained`; projected: whether the loss has projections."""
    return (trained["params"], trained["projections"]) if projected else (trained, {})


def _together(params: Params, projections: Params) -> Any:
    return {"params": params, "projections": projections} if projections else params


def init_state(
    model_or_params: Any,
    optimizer: optax.GradientTransformation | GuardedTransformation,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
    *,
    model: Any = None,
    projections: Projections | None = None,
) -> TrainState:
    """A fresh `TrainState`, laid out over `mesh` and made under `jit`, so that the step compiles only once.

    Args:
      model_or_params: a model (its `init(key)` makes the parameters) or parameters, which are copied: the caller's
        arrays stay valid when the step donates the state.
      optimizer: whose state to initialise.
      key: typed key; one half initialises the model, the other becomes the state's key.
      mesh: default, the first device alone.
      model: whose the parameters are, if parameters are given; see `state_shardings`. None: whole on every device.
      projections: of the objective (`objective.projections`), if it has any.

    Raises:
      ConfigError: the mesh cannot share the model's heads.
    """
    mesh = mesh if mesh is not None else make_mesh(devices=jax.devices()[:1])
    given = None if hasattr(model_or_params, "init") else model_or_params
    shardings = state_shardings(model_or_params if given is None else model, optimizer, mesh, projections)

    def build(given: Params | None, key: PRNGKeyArray) -> TrainState:
        init_key, train_key = jax.random.split(key)
        if given is not None:
            # jit hands an input that is returned unchanged back as the same buffer, hence the copy
            return _fresh(jax.tree.map(jnp.copy, given), optimizer, train_key, projections)
        # random numbers are drawn for all leaves at once: every device draws them and keeps its own
        params = jax.lax.with_sharding_constraint(model_or_params.init(init_key), replicated(mesh))
        return _fresh(params, optimizer, train_key, projections)

    if given is not None:
        given = place(given, shardings.params if isinstance(shardings, TrainState) else shardings)
    return jax.jit(build, out_shardings=shardings)(given, place(key, replicated(mesh)))


def abstract_state(
    model: Any,
    optimizer: optax.GradientTransformation | GuardedTransformation,
    mesh: Mesh,
    projections: Projections | None = None,
) -> TrainState:
    """What `init_state(model, optimizer, key, mesh)` returns, as shapes with shardings: a restore's template."""
    shapes = _shapes(model, optimizer, projections)
    shardings = jax.tree.broadcast(state_shardings(model, optimizer, mesh, projections), shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def state_shardings(
    model: Any,
    optimizer: optax.GradientTransformation | GuardedTransformation,
    mesh: Mesh,
    projections: Projections | None = None,
) -> NamedSharding | TrainState:
    """Where the leaves of a model's `TrainState` lie: what is trained by its logical axes, its moments beside it.

    Everything else (step, key, counters) is whole on every device, and so is all of it where the mesh has only the
    `data` axis, or where the model is no `models.Model`: then this is one sharding instead of a tree of them.

    Raises:
      ConfigError: the mesh cannot share the model's heads.
    """
    whole = replicated(mesh)
    if not isinstance(model, Model) or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return whole
    shapes = _shapes(model, optimizer, projections)
    shardings = dict(jax.tree.leaves_with_path(param_shardings(model, mesh)))
    sizes = {path: leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes.params)}
    for path, leaf in jax.tree.leaves_with_path(shapes.projections):
        shardings[path], sizes[path] = named_sharding(PROJECTION_AXES, leaf.shape, mesh), leaf.shape

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        """That of the matrix or vector whose path this one ends with, if it has its shape."""
        ends = (path[start:] for start in range(len(path)))
        return next((shardings[end] for end in ends if sizes.get(end) == leaf.shape), whole)

    return jax.tree.map_with_path(sharding, shapes)


def _fresh(
    params: Params,
    optimizer: optax.GradientTransformation | GuardedTransformation,
    key: PRNGKeyArray,
    projections: Projections | None,
) -> TrainState:
    # a key of its own, so that a student begins as it would without projections
    matrices = init_projections(projections or {}, jax.random.fold_in(key, _PROJECTIONS_KEY))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(_together(params, matrices)),
        key=key,
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
        projections=matrices,
    )


def _shapes(
    model: Any, optimizer: optax.GradientTransformation | GuardedTransformation, projections: Projections | None
) -> TrainState:
    """A fresh state as shapes."""
    return jax.eval_shape(
        lambda key: _fresh(model.init(key), optimizer, key, projections),
        jax.random.key(0),
    )
