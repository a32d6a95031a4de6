"""What a step must at least do: its FLOPs and its traffic by the textbook, and the time a device needs for them.

Every second and every price here is modelled from data sheets: none was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxdistill.models import Model, parameter_count, parameter_shapes
from jaxdistill.models.llama_config import LlamaConfig
from jaxdistill.plan.targets import Chip


def step_flops(student: Model, teachers: Sequence[Model], *, rows: int, length: int, students: int = 1) -> int:
    """FLOPs of one update's matrix products: 2·N_t + 6·N_s a token and 4·S·(L_t·D_t + 3·L_s·D_s) of attention.

    N counts what tokens are multiplied with: no table that is only looked up in, and of an encoder's classifier one
    row a sequence, which is left out. Attention is the whole square: a kernel that skips what nobody sees does less.
    Nothing is computed twice. Of several students of one shape, N_s and L_s are all of theirs: the teachers run once.
    """
    tokens = rows * length
    of_student = 6 * _weights(student) + 12 * length * _attention_width(student)
    of_teachers = sum(2 * _weights(each) + 4 * length * _attention_width(each) for each in teachers)
    return tokens * (students * of_student + of_teachers)


def _weights(model: Model) -> int:
    """Parameters of the matrices that every token is multiplied with; a head tied to the word table is one of them."""
    leaves = jax.tree.leaves_with_path(parameter_shapes(model))
    named = [([str(part.key) for part in path], leaf.size) for path, leaf in leaves]
    matrices = sum(size for path, size in named if path[-1] == "kernel" and path[0] not in _NOT_OF_TOKENS)
    tied = model.task == "masked_lm" or (isinstance(model.config, LlamaConfig) and model.config.tie_word_embeddings)
    return matrices + (model.config.vocab_size * model.config.hidden_size if tied else 0)


_NOT_OF_TOKENS = ("embeddings", "pooler", "classifier")


def _attention_width(model: Model) -> int:
    """Layers times the channels that their heads compare."""
    config: Any = model.config
    width = config.num_attention_heads * config.head_dim if isinstance(config, LlamaConfig) else config.hidden_size
    return config.num_hidden_layers * width


def fsdp_bytes(student: Model, teachers: Sequence[Model], *, devices: int, itemsize: int, micro_batches: int) -> int:
    """Bytes that a device must receive where `devices` share every parameter: (n − 1)/n · (N_t + 2·N_s + N_s) values.

    The teacher's weights are gathered once, the student's for the forward and again for the backward pass, and its
    gradients scattered, all in the dtype that is multiplied (`itemsize` bytes); once a micro-batch.
    """
    taught = sum(parameter_count(parameter_shapes(each)) for each in teachers)
    values = taught + 3 * parameter_count(parameter_shapes(student))
    return round((devices - 1) / devices * values * itemsize * micro_batches)


@dataclass(frozen=True)
class Modelled:
    """A step's least seconds on a device of that kind, by what it waits for; the longest of them is the step's."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Of one step, everything overlapped: nothing is faster."""
        return max(self.compute, self.memory, self.network)


def roofline(
    chip: Chip, *, flops: float, arguments: int, temporaries: int, collectives: Mapping[str, int]
) -> Modelled | None:
    """The time that data sheets allow; None for a device without one.

    Args:
      chip: the device.
      flops: of one device.
      arguments, temporaries: bytes of one device; each is taken to be read and written once.
      collectives: bytes that a device receives, by kind.
    """
    if chip.flops is None or chip.memory_bandwidth is None or chip.interconnect is None:
        return None
    return Modelled(
        compute=flops / chip.flops,
        memory=2 * (arguments + temporaries) / chip.memory_bandwidth,
        network=sum(collectives.values()) / chip.interconnect,
    )


def per_day(seconds: float, *, tokens: int, devices: int, price: float | None) -> dict[str, float]:
    """Tokens a day at so many seconds a step, and what a day and a billion of them cost, by device and hour."""
    tokens_a_day = tokens / seconds * 86400
    found = {"seconds_per_step": seconds, "tokens_per_day": tokens_a_day}
    if price is not None:
        found["cost_per_day"] = 24 * devices * price
        found["cost_per_billion_tokens"] = found["cost_per_day"] / tokens_a_day * 1e9
    return found


_AGAIN = {"none": 0.0, "names": 0.8, "dots": 0.1, "full": 1.0}
"""How much of the student's forward pass each `remat` computes again, about."""

_TILE = 128
"""Of a TPU's arrays: parts of a weight that are narrower are put together by a sum over all devices, twice as much as
gathering them (as compiled for 64 v5p's that share widths of 4,096 and 1,536)."""

_NOMINAL = (1e11, 1e10)
"""FLOP/s and bytes/s of a device without a data sheet: to rank settings by, and nothing else."""


def least_seconds(
    student: Model,
    teachers: Sequence[Model],
    *,
    chip: Chip,
    mesh_shape: Mapping[str, int],
    rows: int,
    length: int,
    micro_batches: int,
    students: int = 1,
) -> float:
    """Seconds of one step as settings can be ranked by them: the formula's work and the least traffic, half overlapped.

    Besides `fsdp_bytes`, which `tensor` divides, the sums of gradients over `data` and of every layer's two outputs
    over `tensor`.
    """
    flops, interconnect = chip.flops or _NOMINAL[0], chip.interconnect or _NOMINAL[1]
    data, fsdp, tensor = (mesh_shape[axis] for axis in ("data", "fsdp", "tensor"))
    tokens, itemsize = rows * length, student.dtype.itemsize
    forward = step_flops(student, (), rows=rows, length=length, students=students) / 3
    work = step_flops(student, teachers, rows=rows, length=length, students=students)
    work += _AGAIN[student.remat] * forward
    weights = fsdp_bytes(student, teachers, devices=fsdp, itemsize=itemsize, micro_batches=micro_batches) / tensor
    if chip.platform == "tpu" and any(each.config.hidden_size // fsdp < _TILE for each in (student, *teachers)):
        weights *= 2
    trained = students * parameter_count(parameter_shapes(student))
    gradients = 2 * (data - 1) / data * trained * itemsize / (fsdp * tensor)
    passes = [(student, 3 if student.remat == "full" else 2), *((teacher, 1) for teacher in teachers)]
    outputs = sum(times * 2 * each.config.num_hidden_layers * each.config.hidden_size for each, times in passes)
    exchanged = 2 * (tensor - 1) / tensor * outputs * tokens / (data * fsdp) * itemsize
    computing = work / (data * fsdp * tensor) / flops
    travelling = (weights + gradients + exchanged) / interconnect
    return max(computing, travelling) + 0.5 * min(computing, travelling)
