"""Out of device memory: which errors say so, what the figures are made of, and which settings are proposed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill import models
from jaxdistill.config.schema import ParallelConfig, PrecisionConfig, TrainConfig
from jaxdistill.errors import MemoryLimitError
from jaxdistill.models import stack
from jaxdistill.parallel import make_mesh
from jaxdistill.train.memory import device_bytes, memory_breakdown, options
from jaxdistill.train.optimizer import build_optimizer
from jaxdistill.train.out_of_memory import is_out_of_memory, out_of_memory_error

GIB = 2**30

# What JAX, XLA and the drivers really say; sources are public issue threads and error references.
OUT_OF_MEMORY = {
    "TPU, compiling": "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 21.95G of 15.48G hbm. Exceeded hbm capacity by 6.47G.\n\nTotal hbm usage >= 22.47G:\n    reserved  "
    "      530.00M\n    program          21.95G\n    arguments            0B\n",
    "TPU, compiling, newer": "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (100.13G) exceeds available HBM (94.74G).",
    "TPU, compiling, with SparseCore": "RESOURCE_EXHAUSTED: TPU TensorCore Hbm usage: 34.82G, SparseCore Hbm usage "
    "174.10G, exceeding available bytes: 95.74G",
    "TPU, loading": "RESOURCE_EXHAUSTED: Error loading program 'jit_train_step': Attempting to reserve 29.49G at the "
    "bottom of memory. That was not possible. There are 147.64M free, 0B reserved, and 147.64M reservable.",
    "TPU, running": "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 15.65G. That was not "
    "possible. There are 11.08G free.; (0x0x0_HBM0)",
    "GPU, running": "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\nBufferAssignment "
    "OOM Debugging.\nBufferAssignment stats:\n             parameter allocation:  372.76MiB\n",
    "GPU, device ordinal": "RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device "
    "ordinal 0",
    "GPU, loading": "RESOURCE_EXHAUSTED: Failed to load in-memory CUBIN (compiled for a different GPU?).: "
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "CPU": "RESOURCE_EXHAUSTED: Out of memory allocating 4398046511104 bytes.",
}
SOMETHING_ELSE = {
    "a kernel's scratch memory": "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    "space vmem. Used 32.42M of 16.00M vmem. Exceeded vmem capacity by 16.42M",
    "a message": "RESOURCE_EXHAUSTED: Received message larger than max (5242880 vs. 4194304)",
    "a quota": "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests'",
    "a shape": "INVALID_ARGUMENT: Argument does not match host shape or layout of computation parameter 0",
}


@pytest.mark.parametrize("text", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_real_texts_are_recognised(text):
    assert is_out_of_memory(jax.errors.JaxRuntimeError(text))
    assert is_out_of_memory(ValueError(text.replace("RESOURCE_EXHAUSTED: ", "XLA: ")))  # as some backends raise it
    wrapped = KeyError("wrapped")
    wrapped.__cause__ = jax.errors.JaxRuntimeError(text)
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize("text", SOMETHING_ELSE.values(), ids=SOMETHING_ELSE.keys())
def test_other_errors_are_not(text):
    assert not is_out_of_memory(jax.errors.JaxRuntimeError(text))


def test_host_memory_is_not():
    assert not is_out_of_memory(MemoryError("Unable to allocate 64.0 TiB for an array"))


@pytest.mark.parametrize(
    "function",
    [lambda: jnp.zeros((2**44,), jnp.uint8), lambda: jax.jit(lambda x: jnp.broadcast_to(x, (2**42,)) * 2)(1.0)],
    ids=["an array", "a program"],
)
def test_a_real_one_is(function):
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(function())
    assert is_out_of_memory(caught.value)


SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
ROWS, LENGTH = 8, 64
PARTS = ("student_params", "opt_state", "gradients", "teacher_params", "batch", "activations", "logits")


def language_batch(rows=ROWS, length=LENGTH):
    names = ("input_ids", "segment_ids", "positions", "labels")
    return {name: np.zeros((rows, length), np.int32) for name in names} | {"example_id": np.zeros(rows, np.int32)}


def step_memory(*, sharding=None, mesh_shape=None, teacher_dtype=jnp.float32, **overrides):
    """A step of a tiny decoder and a teacher of the same shape, all from `ShapeDtypeStruct`s."""
    train = overrides.pop("train", TrainConfig(steps=10, batch_size=ROWS))
    student = overrides.pop("student", models.build(SHAPE, task="causal_lm", remat=train.remat))
    params = jax.eval_shape(student.init, jax.random.key(0))
    teacher = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, teacher_dtype), params)
    opt_state = jax.eval_shape(build_optimizer(train, 10)[0].init, params)
    if sharding is not None:
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf))  # noqa: E731
        params, teacher, opt_state = jax.tree.map(place, (params, teacher, opt_state))
    values = {
        "student": student,
        "train": train,
        "parallel": ParallelConfig(),
        "precision": PrecisionConfig(),
        "mesh_shape": mesh_shape or {"data": 1, "fsdp": 1, "tensor": 1},
        "fused": False,
        "student_params": params,
        "opt_state": opt_state,
        "teacher_params": (teacher,),
        "batch": language_batch(),
    }
    return memory_breakdown(**values | overrides)


def test_figures_are_the_trees_sizes():
    figures = step_memory().figures()
    model = models.build(SHAPE, task="causal_lm")
    params = jax.jit(model.init)(jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    moments = jax.jit(build_optimizer(TrainConfig(steps=10), 10)[0].init)(params)
    assert figures.student_params == figures.gradients == figures.teacher_params == size
    assert figures.opt_state == sum(leaf.nbytes for leaf in jax.tree.leaves(moments)) == 2 * size + 4
    assert figures.batch == sum(array.nbytes for array in language_batch().values())
    assert figures.logits == 3 * ROWS * LENGTH * 512 * 4  # the student's, their gradient, the teacher's
    assert figures.total == sum(getattr(figures, part) for part in PARTS)


def test_activations_are_what_differentiation_keeps(monkeypatch):
    """Linear in the rows; with `full`, a layer's input for each layer, and all that one layer keeps."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    one, all_rows = step_memory(train=TrainConfig(steps=10, batch_size=1)), step_memory()
    assert all_rows.figures().activations == ROWS * one.figures().activations
    full = step_memory(train=TrainConfig(steps=10, batch_size=ROWS, remat="full")).figures().activations
    inputs = 4 * ROWS * LENGTH * 32
    assert full - all_rows.figures().activations // 2 >= 2 * inputs
    assert full - all_rows.figures().activations // 2 <= 4 * inputs


def test_activations_are_of_the_compilers_order(monkeypatch):
    """Rematerialisation saves, of the temporaries that XLA plans, about what is said to be saved."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)

    def temporaries(remat):
        model = models.build(SHAPE | {"num_hidden_layers": 12}, task="causal_lm", remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0))

        def loss(params, batch):
            return jnp.sum(jnp.square(model.apply(params, batch, ("last_hidden",))["last_hidden"]))

        compiled = jax.jit(jax.grad(loss)).lower(params, language_batch()).compile()
        train = TrainConfig(steps=10, batch_size=ROWS, remat=remat)
        return compiled.memory_analysis().temp_size_in_bytes, step_memory(
            student=model, train=train
        ).figures().activations

    (planned, estimated), (planned_full, estimated_full) = temporaries("none"), temporaries("full")
    assert estimated - estimated_full == pytest.approx(planned - planned_full, rel=0.4)


def test_bytes_are_those_of_one_device():
    mesh = make_mesh(ParallelConfig(data=2, fsdp=4))
    array = jax.device_put(np.zeros((8, 6), np.float32), NamedSharding(mesh, PartitionSpec("fsdp")))
    assert device_bytes({"a": array, "b": np.zeros(3, np.int32)}) == 8 * 6 * 4 // 4 + 12
    array.delete()  # as the step's donated state is when the error arrives
    assert device_bytes(array) == 8 * 6 * 4 // 4

    def sharding(leaf):
        axis = next((axis for axis, size in enumerate(leaf.shape) if size % 4 == 0), None)
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp") if axis is not None else PartitionSpec())

    whole = step_memory().figures()
    spread = step_memory(sharding=sharding, mesh_shape=mesh.shape).figures()
    assert spread.student_params == whole.student_params // 4
    assert spread.teacher_params == whole.teacher_params // 4
    assert spread.activations == whole.activations // 8
    assert spread.batch == whole.batch // 8


def found(step, goal=None):
    return {option.setting: option.saving for option in options(step, goal)}


def test_every_setting_saves_what_it_says():
    """By making the step with the setting from the start."""
    step = step_memory()
    saving = found(step)
    assert list(saving.values()) == sorted(saving.values(), reverse=True)
    total, train = step.figures().total, step.train
    narrow = models.build(SHAPE, task="causal_lm", dtype=jnp.bfloat16)
    half = jnp.bfloat16
    made = {
        "train.remat: full": step_memory(train=replace(train, remat="full")),
        "fused: on": step_memory(fused=True),
        "train.accumulate: 8": step_memory(train=replace(train, accumulate=8)),
        "train.batch_size: 4": step_memory(train=replace(train, batch_size=4)),
        "precision.compute: bfloat16": step_memory(student=narrow, teacher_dtype=half),
        "precision.teacher: bfloat16": step_memory(teacher_dtype=half),
    }
    assert {name: total - other.figures().total for name, other in made.items()} == {
        name: size for name, size in saving.items() if name != "train.moment: bfloat16"
    }
    assert saving["train.moment: bfloat16"] == step.figures().student_params // 2


def test_settings_of_several_devices():
    parallel = ParallelConfig(data=-1, teacher="replicated")
    saving = found(step_memory(parallel=parallel, mesh_shape={"data": 4, "fsdp": 1, "tensor": 1}))
    figures = step_memory().figures()
    of_student = figures.student_params + figures.opt_state + figures.gradients
    assert saving["parallel.data: 1, parallel.fsdp: 4"] == pytest.approx(of_student * 3 / 4, abs=4)
    assert "train.accumulate: 2" in saving  # two rows a device
    spread = found(step_memory(parallel=parallel, mesh_shape={"data": 1, "fsdp": 4, "tensor": 1}))
    assert spread["parallel.teacher: fsdp"] == figures.teacher_params * 3 // 4


def test_what_is_in_use_is_left_out():
    train = TrainConfig(steps=10, batch_size=ROWS, accumulate=ROWS, remat="full", moment="bfloat16")
    student = models.build(SHAPE, task="causal_lm", remat="full", dtype=jnp.bfloat16)
    step = step_memory(train=train, student=student, fused=True, teacher_dtype=jnp.bfloat16)
    assert list(found(step)) == ["data.max_length: 32"]
    assert "fused: on" not in found(step_memory(fused=None))  # a loss that cannot be fused


def test_classifier():
    """No logits to speak of; its teacher can be cached."""
    shape = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    student = models.build(shape | {"intermediate_size": 64, "vocab_size": 100}, num_labels=2)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: np.zeros((ROWS, LENGTH), np.int32) for name in names} | {"example_id": np.zeros(ROWS, np.int32)}
    step = step_memory(student=student, batch=batch, cache=1000, fused=None)
    figures = step.figures()
    assert figures.logits == 0
    assert found(step)["teacher_cache: memory"] == figures.teacher_params - 1000


def test_message_has_figures_and_what_fits():
    step = step_memory()
    total = step.figures().total
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        f"Used {total / GIB:.6f}G of {0.5 * total / GIB:.6f}G hbm. Exceeded hbm capacity by 0.1G."
    )
    answer = out_of_memory_error(error, step)
    assert isinstance(answer, MemoryLimitError)
    assert answer.exit_status == 2
    first, held, header, *settings, last = str(answer).splitlines()
    assert (
        first == f"out of device memory: the step needs {total / 2**20:.2f} MiB of a device's {total / 2**21:.2f} MiB"
    )
    activations = step.figures().activations / 2**20
    assert held.startswith(
        f"one device holds about {total / 2**20:.2f} MiB: activations {activations:.2f} MiB, logits "
    )
    assert header == "settings that need less, biggest saving first:"
    assert [line.split(" (saves ")[0].strip() for line in settings] == list(found(step, total // 2))
    assert last == "the first alone should fit"  # micro-batches


def test_fewest_micro_batches_that_fit():
    step = step_memory()
    needed = step_memory(train=replace(step.train, accumulate=2)).figures().total
    assert "train.accumulate: 2" in found(step, needed)
    assert "train.accumulate: 4" in found(step, needed - 1)
    assert "train.accumulate: 8" in found(step, 0)


def test_message_says_when_nothing_is_enough():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2097152 bytes.")
    answer = str(out_of_memory_error(error, step_memory(), limit=2**16)).splitlines()
    assert answer[0] == ("out of device memory: 2.00 MiB more were asked for than were left of a device's 64.00 KiB")
    assert answer[-1].startswith("all of them together are still ")
    assert answer[-1].endswith(" too large: take more devices, a smaller student or a smaller teacher")
    without_limit = str(out_of_memory_error(error, step_memory()))
    assert "should fit" not in without_limit
    assert "too large" not in without_limit
