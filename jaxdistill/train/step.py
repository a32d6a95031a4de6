"""The compiled step: `program` over a mesh or through pmap, and where its arguments go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.distill import Metrics, Objective, Teacher
from jaxdistill.errors import ConfigError
from jaxdistill.models import Model
from jaxdistill.models.axes import check_mesh, param_shardings
from jaxdistill.parallel import (
    BATCH_AXES,
    Layout,
    batch_devices,
    batch_sharding,
    check_divisible,
    check_pmap,
    compiler_options,
    make_mesh,
    place,
    put_batch,
    put_batches,
    replicate,
    replicated,
    stacked_sharding,
    tracing_for,
)
from jaxdistill.train.adamw import GuardedTransformation, guarded
from jaxdistill.train.program import StepProgram
from jaxdistill.train.state import TrainState, abstract_state, state_shardings
from jaxdistill.typing import Batch, Params

_AXIS = "data"


def make_train_step(
    *,
    student: Any,
    teachers: Sequence[Teacher] = (),
    objective: Objective,
    optimizer: optax.GradientTransformation | GuardedTransformation,
    mesh: Mesh | None = None,
    strategy: Literal["jit", "pmap"] = "jit",
    accumulate: int = 1,
    donate: bool = True,
    teacher_layout: Layout = "same",
) -> TrainStep:
    """One training step as one compiled program per batch shape.

    Args:
      student: a `models.Model`.
      teachers: whose signals the objective reads, in the order of the `teacher_params` given to the step.
      objective: terms to loss and metrics.
      optimizer: the whole update, clipping included; any Optax transformation, or `build_optimizer`'s.
      mesh: devices; the batch is split over `data` and `fsdp`, parameters and optimizer state of a `models.Model` over
        `fsdp` and `tensor` by its logical axes; everything else is replicated. Default: the first device.
      strategy: `jit` over the mesh, or the same computation through `jax.pmap` (over `data` alone).
      accumulate: micro-batches per update, scanned over inside the step; they are weighted by their real counts.
      donate: let the step reuse the state's memory; the state passed in is then gone.
      teacher_layout: how teachers' parameters are laid out: as a student's, whole, or over one axis alone.

    Returns:
      step(state, teacher_params, batch) -> (state, metrics). Metrics are (sum, count) on the device: those of the
      objective, `grad_norm` before clipping, and `skipped`. A step whose loss or gradient is not finite changes
      neither parameters nor optimizer state; its metrics count nothing except `skipped`.

    Raises:
      ConfigError: accumulate < 1, the objective reads a teacher and there is none, `pmap` on a mesh of other axes than
        `data`, or a mesh that cannot share the heads of student or teacher.
    """
    mesh = mesh if mesh is not None else make_mesh(devices=jax.devices()[:1])
    program = StepProgram(student, tuple(teachers), objective, guarded(optimizer), accumulate)
    return TrainStep(program, mesh, strategy=strategy, donate=donate, teacher_layout=teacher_layout)


class TrainStep:
    """A compiled step and the placement it expects; made by `make_train_step`, or of a program of another kind.

    State, teacher parameters and batches are placed by `put_state`, `put_params` and `put_batch`, and `get_state` gives
    the ordinary state back: the same calls whatever the strategy. Under `jit`, a state made by `init_state` for the
    same model on the same mesh, or restored into `abstract_state`, needs no placing. A batch on the host is placed when
    the step is called.
    """

    def __init__(
        self,
        program: StepProgram,
        mesh: Mesh,
        *,
        strategy: Literal["jit", "pmap"],
        donate: bool,
        teacher_layout: Layout = "same",
    ) -> None:
        _check_program(program, mesh, strategy)
        self.mesh = mesh
        self.strategy = strategy
        self.trace_count = 0
        self._program = program
        self._teacher_layout: Layout = teacher_layout
        donated = (0,) if donate else ()
        if strategy == "pmap":
            check_pmap(mesh.shape)
            # pmap's own mesh has this one axis: arrays placed on any other would be a second trace
            self._stacked = NamedSharding(Mesh(mesh.devices.reshape(-1), (_AXIS,)), PartitionSpec(_AXIS))
            how: dict[str, Any] = {"split": _split_rows, "total": lambda tree: jax.lax.psum(tree, _AXIS), "mesh": None}
            pmap = partial(
                jax.pmap, axis_name=_AXIS, out_axes=(0, None), donate_argnums=donated, devices=list(mesh.devices.flat)
            )
            self._compiled = pmap(self._traced(program.run, how))
            self._many = pmap(self._traced(program.run_many, how), in_axes=(0, 0, 0, None))
        else:
            for model in filter(None, map(_model_of, program.teachers)):
                check_mesh(model, mesh, teacher_layout)
            self._state_shardings = state_shardings(
                program.student, program.optimizer, mesh, program.objective.projections
            )
            spread = mesh if mesh.size > 1 else None
            how = {"split": self._split_sharded, "total": lambda tree: tree, "mesh": spread}
            jit = partial(
                jax.jit,
                out_shardings=(self._state_shardings, replicated(mesh)),
                donate_argnums=donated,
                compiler_options=compiler_options(mesh),
            )
            # teachers' parameters lie where `put_params` has put them: what they are, only the teacher knows
            before = (self._state_shardings, None)
            self._compiled = jit(self._traced(program.run, how), in_shardings=(*before, batch_sharding(mesh)))
            several = (stacked_sharding(mesh), replicated(mesh))
            self._many = jit(self._traced(program.run_many, how), in_shardings=(*before, *several))

    def __call__(self, state: TrainState, teacher_params: Sequence[Params], batch: Batch) -> tuple[TrainState, Metrics]:
        """One step. The state passed in is donated.

        Raises:
          ConfigError: the batch cannot be divided evenly between devices and micro-batches.
          ValueError: under `pmap`, a state that was not placed by `put_state`.
        """
        self._check_state(state)
        return self._compiled(state, tuple(teacher_params), self.put_batch(batch))

    def many(
        self, state: TrainState, teacher_params: Sequence[Params], batches: Batch, count: int
    ) -> tuple[TrainState, Metrics]:
        """`count` steps in one dispatch: the same as `count` calls, up to how the compiler rounds.

        Args:
          state: donated, as in a call.
          teacher_params: placed by `put_params`.
          batches: K of one shape stacked on a leading axis, of which the first `count` are used: one program for each K
            and shape, whatever the count.
          count: 1 ≤ count ≤ K.

        Returns:
          (state, metrics): the state after all of them, and the metrics of each step as [K] sums and counts.
        """
        self._check_state(state)
        return self._many(state, tuple(teacher_params), self.put_batches(batches), np.int32(count))

    def lower(self, state: TrainState, teacher_params: Sequence[Params], batch: Batch) -> Any:
        """The step lowered for these arguments: `.compile()` gives its memory, cost and HLO text without running it.

        Arguments may be shapes (of `abstract_state`, `abstract_params` and `abstract_batch`): then the mesh's devices
        need not be attached.
        """
        self._check_state(state)
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(batch))
        return self._compiled.lower(state, tuple(teacher_params), batch if abstract else self.put_batch(batch))

    def lower_many(self, state: TrainState, teacher_params: Sequence[Params], batches: Batch, count: int) -> Any:
        """As `lower`, of `many`."""
        self._check_state(state)
        return self._many.lower(state, tuple(teacher_params), self.put_batches(batches), np.int32(count))

    def jaxpr(self, state: Any, teacher_params: Sequence[Any], batch: Any) -> Any:
        """The step's ClosedJaxpr for arguments as it takes them, or their shapes: what `train.flops` counts on."""
        arguments = (state, tuple(teacher_params), batch)
        if self.strategy == "pmap":
            return jax.make_jaxpr(self._compiled)(*arguments)
        return self._compiled.trace(*arguments).jaxpr

    def put_batch(self, batch: Batch) -> Batch:
        """The batch where the step wants it; one that is already there passes through. See `parallel.put_batch`.

        Raises:
          ConfigError: it cannot be divided evenly between devices and micro-batches.
        """
        if self.strategy == "pmap":
            if np.ndim(batch["input_ids"]) == 3:
                return batch
            rows = int(np.shape(batch["input_ids"])[0])
            check_divisible(rows, self.mesh, accumulate=self._program.accumulate)
            devices = self.mesh.shape[_AXIS]
            return jax.device_put(jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch), self._stacked)
        placed = put_batch(batch, self.mesh)
        check_divisible(placed["input_ids"].shape[0], self.mesh, accumulate=self._program.accumulate)
        return placed

    def put_batches(self, batches: Batch) -> Batch:
        """`put_batch` for `many`: of batches stacked on a leading axis."""
        accumulate = self._program.accumulate
        if self.strategy == "pmap":
            if np.ndim(batches["input_ids"]) == 4:
                return batches
            check_divisible(int(np.shape(batches["input_ids"])[1]), self.mesh, accumulate=accumulate)
            devices = self.mesh.shape[_AXIS]
            parts = jax.tree.map(lambda x: x.reshape(len(x), devices, -1, *x.shape[2:]).swapaxes(0, 1), batches)
            return jax.device_put(parts, self._stacked)
        placed = put_batches(batches, self.mesh)
        check_divisible(placed["input_ids"].shape[1], self.mesh, accumulate=accumulate)
        return placed

    def put_state(self, state: TrainState) -> TrainState:
        """An ordinary state (from `init_state` or a checkpoint) where the step wants it."""
        return self._stack(state) if self.strategy == "pmap" else place(state, self._state_shardings)

    def put_params(self, teacher_params: Sequence[Params]) -> tuple[Params, ...]:
        """The teachers' parameters where the step wants them: once per stage."""
        return tuple(
            self._put_teacher(teacher, params)
            for teacher, params in zip(self._program.teachers, teacher_params, strict=True)
        )

    def get_state(self, state: TrainState) -> TrainState:
        """The ordinary state, as checkpoints and evaluation take it; it shares no donated memory under `pmap`."""
        if self.strategy == "pmap":
            return replicate(jax.tree.map(lambda x: x[0], state), self.mesh)
        return state

    def get_params(self, teacher_params: Sequence[Params]) -> tuple[Params, ...]:
        """The teachers' placed parameters as evaluation takes them: under `pmap`, one of the copies."""
        if self.strategy == "pmap":
            return tuple(replicate(jax.tree.map(lambda x: x[0], params), self.mesh) for params in teacher_params)
        return tuple(teacher_params)

    def abstract_params(self, teacher_params: Sequence[Params]) -> list[Any]:
        """Teachers' parameters as shapes with the shardings that `put_params` gives them."""

        def abstract(teacher: Teacher, params: Params) -> Any:
            model = _model_of(teacher)
            shardings: Any = jax.tree.map(lambda _: replicated(self.mesh), params)
            if model is not None and self.strategy == "jit":
                shardings = param_shardings(model, self.mesh, self._teacher_layout, like=params)
            return jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), params, shardings
            )

        return [abstract(*pair) for pair in zip(self._program.teachers, teacher_params, strict=True)]

    def abstract_batch(self, batch: Batch) -> Batch:
        """A global batch, of arrays or shapes, as shapes with the shardings that `put_batch` gives it."""
        sharding = batch_sharding(self.mesh)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), batch)

    def abstract_state(self) -> TrainState:
        """The ordinary state as shapes with shardings: what a restore puts every array straight where it goes by."""
        program = self._program
        return abstract_state(program.student, program.optimizer, self.mesh, program.objective.projections)

    def skipped_in_a_row(self, state: TrainState) -> int:
        """How many updates in a row were skipped up to this state; waits for the device."""
        return int(np.asarray(state.skipped_in_a_row).reshape(-1)[0])

    def _stack(self, tree: Any) -> Any:
        """A copy for each device, as pmap wants it."""
        devices = self.mesh.shape[_AXIS]
        stack = jax.jit(
            lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x[None], (devices, *x.shape)), tree),
            out_shardings=self._stacked,
        )
        return stack(replicate(tree, self.mesh))

    def _put_teacher(self, teacher: Teacher, params: Params) -> Params:
        prepared = teacher.prepare(params)
        if self.strategy == "pmap":
            return self._stack(prepared)
        model = _model_of(teacher)
        if model is None:
            return replicate(prepared, self.mesh)
        return place(prepared, param_shardings(model, self.mesh, self._teacher_layout, like=prepared))

    def _traced(self, run: Callable, how: dict[str, Any]) -> Callable:
        """The program, counting how often it is traced. how: `StepProgram.run`'s keywords but `alone`."""
        mesh: Mesh | None = how["mesh"]

        def step(state: TrainState, teacher_params: Sequence[Params], *batch: Any) -> tuple[TrainState, Metrics]:
            self.trace_count += 1
            # what models do for several devices, they do over the mesh in context
            context = nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
            with context, tracing_for(self.mesh):
                return run(state, teacher_params, *batch, alone=self.mesh.size == 1, **how)

        return step

    def _split_sharded(self, batch: Batch, parts: int) -> Batch:
        """[B, ...] to [parts, B/parts, ...] with every device's rows staying where they are."""
        devices = batch_devices(self.mesh)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))

        def split(x):
            rows = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(rows.reshape(parts, -1, *x.shape[1:]), sharding)

        return jax.tree.map(split, batch)

    def _check_state(self, state: TrainState) -> None:
        if self.strategy == "pmap" and np.ndim(state.step) != 1:
            raise ValueError(
                "under pmap the state has one copy per device: pass it through step.put_state(state) first"
            )


def _check_program(program: StepProgram, mesh: Mesh, strategy: str) -> None:
    """Raises what `make_train_step` says of them."""
    objective, accumulate = program.objective, program.accumulate
    if accumulate < 1:
        raise ConfigError(f"accumulate: {accumulate} micro-batches; at least 1 is needed")
    if objective.teacher_outputs and not program.teachers:
        raise ConfigError(f"the loss reads {', '.join(objective.teacher_outputs)} of a teacher, but none was given")
    if objective.coupled and (accumulate > 1 or (strategy == "pmap" and mesh.size > 1)):
        raise ConfigError(
            "the loss compares the examples of a batch with one another, and micro-batches or pmap's devices would see "
            "only a part of them; use accumulate: 1 and strategy: jit"
        )


def _model_of(teacher: Teacher) -> Model | None:
    """The model whose parameters the teacher reads; None if they are anything else, and so whole on every device."""
    model = getattr(teacher, "model", None)
    return model if isinstance(model, Model) else None


def _split_rows(batch: Batch, parts: int) -> Batch:
    """[B, ...] to [parts, B/parts, ...]."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
