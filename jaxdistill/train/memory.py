"""What of a step's device memory is held by what, and which settings would need less.

Parameters, moments and batch are counted. What the student keeps for its backward pass is what automatic
differentiation says it keeps; the compiler may do better, and needs some more besides, such as the teachers' layer at
hand. So the figures rank the settings; only the compiler, or the device, knows whether a step fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.config.schema import ParallelConfig, PrecisionConfig, TrainConfig
from jaxdistill.losses.fused import chunk_tokens
from jaxdistill.models import Model
from jaxdistill.models.build import parameter_shapes
from jaxdistill.typing import Batch, Params


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes of one device by what holds them; activations and logits are estimates."""

    student_params: int
    opt_state: int
    gradients: int
    teacher_params: int
    batch: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class StepMemory:
    """What the memory of a compiled step depends on; made by `memory_breakdown`. Bytes are those of one device.

    student_params, opt_state: of all `students`. row: shapes and dtypes of one row of the batch. wide_teacher: the
    float32 part of teacher_params. cache: what the teachers' logits would need if they were cached (None: they are, or
    cannot be).
    """

    student: Model
    train: TrainConfig
    parallel: ParallelConfig
    precision: PrecisionConfig
    data: int
    fsdp: int
    tensor: int
    fused: bool | None
    row: Mapping[str, Any]
    student_params: int
    opt_state: int
    teacher_params: int
    wide_teacher: int
    teachers: int
    cache: int | None
    students: int = 1

    @property
    def rows(self) -> int:
        """Rows of a micro-batch on one device."""
        return max(1, self.train.batch_size // (self.data * self.fsdp * self.train.accumulate))

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.row["input_ids"].shape[0]

    def figures(self) -> MemoryFigures:
        """Bytes by what holds them."""
        gradients = self.student_params * (1 if self.train.accumulate == 1 else 2)  # a micro-batch's, and their sum
        row = sum(_bytes(leaf.shape, leaf) for leaf in jax.tree.leaves(self.row))
        return MemoryFigures(
            student_params=self.student_params,
            opt_state=self.opt_state,
            gradients=gradients,
            teacher_params=self.teacher_params,
            batch=row * self.rows * self.train.accumulate,
            activations=self.students * self.rows * _activation_bytes(self.student, self.row),
            logits=self._logits(),
        )

    def _logits(self) -> int:
        """The students', their gradients, and the teachers', in float32: whole, or the fused loss's tile of them."""
        if not self.student.task.endswith("_lm"):
            return 0  # of a classifier a few numbers a row
        # a masked LM has labels, and logits, at masked positions only
        tokens, classes = self.rows * self.row["labels"].shape[0], -(-self.student.config.vocab_size // self.tensor)
        whole = 4 * tokens * classes
        tile = 4 * chunk_tokens(tokens, classes) * classes if self.fused else whole
        return (2 * self.students + self.teachers) * tile


def memory_breakdown(
    *,
    student: Model,
    train: TrainConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    mesh_shape: Mapping[str, int],
    fused: bool | None,
    student_params: Params,
    opt_state: Any,
    teacher_params: Sequence[Params],
    batch: Batch,
    cache: int | None = None,
    students: int = 1,
) -> StepMemory:
    """What a step holds on one device, from shapes, dtypes and shardings alone: arrays may have been donated.

    Args:
      student: the model as it is trained, its `dtype` and `remat` included.
      train, parallel, precision: the stage's settings.
      mesh_shape: devices on the axes data, fsdp and tensor.
      fused: whether loss and gradients are formed without whole logits; None if they cannot be.
      student_params, opt_state, teacher_params: as the step takes them, or `ShapeDtypeStruct`s; what has no sharding
        counts as whole on every device.
      batch: any global batch of the stage, as arrays or shapes [B, ...].
      cache: bytes of a cache of the teachers' logits if there could be one and is none.
      students: how many of that shape the step trains; `student_params` and `opt_state` are one student's.
    """
    leaves = jax.tree.leaves(tuple(teacher_params))
    return StepMemory(
        student=student,
        train=train,
        parallel=parallel,
        precision=precision,
        data=mesh_shape["data"],
        fsdp=mesh_shape["fsdp"],
        tensor=mesh_shape["tensor"],
        fused=fused,
        row=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), dict(batch)),
        student_params=students * device_bytes(student_params),
        opt_state=students * device_bytes(opt_state),
        teacher_params=device_bytes(leaves),
        wide_teacher=device_bytes([leaf for leaf in leaves if leaf.dtype == jnp.float32]),
        teachers=len(teacher_params),
        cache=cache,
        students=students,
    )


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of arrays, or of shapes with or without a sharding, takes on one device."""
    return sum(_bytes(_shard_shape(leaf), leaf) for leaf in jax.tree.leaves(tree))


def planned_bytes(compiled: Any) -> dict[str, int]:
    """Bytes a device of a compiled program, as the compiler plans them.

    Returns:
      {"arguments", "outputs", "temporaries", "peak"}; an output that takes an argument's place counts once in the peak.
    """
    memory = compiled.memory_analysis()
    planned = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    return planned | {"peak": sum(planned.values()) - memory.alias_size_in_bytes}


@dataclass(frozen=True)
class Option:
    """A setting, as it is written; what it saves by itself; and how it changes any step (None: not at all)."""

    setting: str
    saving: int
    remark: str
    change: Callable[[StepMemory], StepMemory | None]


def options(step: StepMemory, goal: int | None = None) -> list[Option]:
    """The settings that need less memory than `step`, biggest saving first; `goal` is what it should come down to."""
    now, parallel = step.figures().total, step.parallel
    fsdp = step.data * step.fsdp
    shared = "" if parallel.strategy == "jit" else "parallel.strategy: jit, "
    parts = _micro_batches(step, goal)
    listed: list[tuple[str, str, Callable[[StepMemory], StepMemory | None]]] = [
        ("train.remat: full", "; same result, a third more of the student's computing", _with_remat),
        ("fused: on", "", _with_fused),
        (f"train.accumulate: {step.train.accumulate * parts}", "; same result", lambda s: _with_parts(s, parts)),
        (f"train.batch_size: {step.train.batch_size // 2}", "; another result", _with_half_batch),
        (f"data.max_length: {step.length // 2}", "; another result", _with_half_length),
        (f"{shared}parallel.data: 1, parallel.fsdp: {fsdp}", "; same result", _with_fsdp),
        ("precision.compute: bfloat16", "", _with_bfloat16),
        ("precision.teacher: bfloat16", "", _with_bfloat16_teacher),
        ("train.moment: bfloat16", "", _with_bfloat16_moment),
        ("parallel.teacher: fsdp", "; same result", _with_sharded_teacher),
        ("teacher_cache: memory", "; same result", _with_cache),
    ]
    found = []
    for setting, remark, change in listed:
        changed = change(step)
        saving = now - changed.figures().total if changed is not None else 0
        if saving > 0:
            found.append(Option(setting, saving, remark, change))
    return sorted(found, key=lambda option: -option.saving)


def _micro_batches(step: StepMemory, goal: int | None) -> int:
    """How many parts to cut a micro-batch into: as few as fit by themselves, or else single rows."""
    divisors = [parts for parts in range(2, step.rows + 1) if step.rows % parts == 0]
    for parts in divisors:
        changed = _with_parts(step, parts)
        if goal is not None and changed is not None and changed.figures().total <= goal:
            return parts
    return divisors[-1] if divisors else 1


def _with_remat(step: StepMemory) -> StepMemory | None:
    if step.student.remat == "full":
        return None
    return replace(step, student=replace(step.student, remat="full"))


def _with_fused(step: StepMemory) -> StepMemory | None:
    return replace(step, fused=True) if step.fused is False else None


def _with_parts(step: StepMemory, parts: int) -> StepMemory | None:
    if parts == 1 or step.rows % parts:
        return None
    return replace(step, train=replace(step.train, accumulate=step.train.accumulate * parts))


def _with_half_batch(step: StepMemory) -> StepMemory | None:
    if step.rows % 2:
        return None
    return replace(step, train=replace(step.train, batch_size=step.train.batch_size // 2))


def _with_half_length(step: StepMemory) -> StepMemory | None:
    """Only where a micro-batch is one row: shorter texts are worse than smaller batches."""
    if step.rows > 1 or step.length < 16:
        return None

    def halved(leaf: Any) -> Any:
        shape = tuple(size // 2 if size == step.length else size for size in leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return replace(step, row=jax.tree.map(halved, step.row))


def _with_fsdp(step: StepMemory) -> StepMemory | None:
    """The devices that each have a whole copy share one instead; students of a sweep are always whole."""
    if step.data == 1 or step.students > 1:
        return None
    follows = step.parallel.teacher in ("same", "fsdp")
    return replace(
        step,
        data=1,
        fsdp=step.data * step.fsdp,
        student_params=step.student_params // step.data,
        opt_state=step.opt_state // step.data,
        teacher_params=step.teacher_params // step.data if follows else step.teacher_params,
        wide_teacher=step.wide_teacher // step.data if follows else step.wide_teacher,
    )


def _with_bfloat16(step: StepMemory) -> StepMemory | None:
    if step.student.dtype == jnp.bfloat16:
        return None
    narrow = replace(step, student=replace(step.student, dtype=jnp.dtype(jnp.bfloat16)))
    # a teacher's dtype that is not written follows the arithmetic's
    follows = step.precision.teacher is None
    return (_with_bfloat16_teacher(narrow) if follows else None) or narrow


def _with_bfloat16_teacher(step: StepMemory) -> StepMemory | None:
    if not step.wide_teacher:
        return None
    return replace(step, teacher_params=step.teacher_params - step.wide_teacher // 2, wide_teacher=0)


def _with_bfloat16_moment(step: StepMemory) -> StepMemory | None:
    if step.train.moment == "bfloat16":
        return None
    train = replace(step.train, moment="bfloat16")
    return replace(step, train=train, opt_state=step.opt_state - step.student_params // 2)


def _with_sharded_teacher(step: StepMemory) -> StepMemory | None:
    if step.parallel.teacher != "replicated" or step.fsdp == 1 or not step.teacher_params:
        return None
    return replace(
        step,
        parallel=replace(step.parallel, teacher="fsdp"),
        teacher_params=step.teacher_params // step.fsdp,
        wide_teacher=step.wide_teacher // step.fsdp,
    )


def _with_cache(step: StepMemory) -> StepMemory | None:
    if step.cache is None or not step.teacher_params:
        return None
    return replace(step, teacher_params=step.cache, wide_teacher=0, cache=None)


def _activation_bytes(student: Model, row: Mapping[str, Any]) -> int:
    """What one row more keeps for the backward pass, by automatic differentiation; nothing is computed.

    Where layers are computed again, one layer's own is there besides while its backward pass runs.
    """
    leaves, treedef = jax.tree.flatten(dict(row))
    kept = _kept_by_a_row(student, tuple(leaves), treedef)
    if student.remat == "none":
        return kept
    everything = _kept_by_a_row(replace(student, remat="none"), tuple(leaves), treedef)
    return kept + everything // student.config.num_hidden_layers


@lru_cache(maxsize=64)  # the settings that are compared differ in few of the student's own
def _kept_by_a_row(student: Model, leaves: tuple[jax.ShapeDtypeStruct, ...], treedef: Any) -> int:
    """Bytes between forward and backward pass: what two rows keep less what one keeps, which leaves out parameters."""
    output = "last_hidden" if student.task.endswith("_lm") else "logits"

    def backward(params: Params, batch: Batch) -> Any:
        key = jax.random.key(0)
        return jax.vjp(lambda params: student.apply(params, batch, (output,), key)[output], params)[1]

    def kept(rows: int) -> int:
        batch = treedef.unflatten(jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype) for leaf in leaves)
        residuals = jax.eval_shape(backward, parameter_shapes(student), batch)
        return sum(_bytes(leaf.shape, leaf) for leaf in jax.tree.leaves(residuals))

    return kept(2) - kept(1)


def _shard_shape(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)


def _bytes(shape: Sequence[int], leaf: Any) -> int:
    return math.prod(shape) * leaf.dtype.itemsize
