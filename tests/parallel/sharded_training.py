"""Tiny students and teachers, their batches, and a few steps of training on a mesh of simulated devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from jaxdistill import models
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import ParallelConfig, TrainConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.parallel import make_mesh
from jaxdistill.train import TrainStep, build_optimizer, init_state, make_train_step

# Tokens are powers of two, widths have a factor of 3 or 5, and 53 is the vocabulary's: no two products are equal.
VOCAB, ROWS, LENGTH, LABELS, STUDENT, TEACHER = 212, 16, 8, 3, 24, 40
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x2x4": (1, 2, 4)}
TERMS = [DivergenceTerm("forward_kl", weight=0.7, temperature=2.0), CrossEntropyTerm("cross_entropy", weight=0.3)]


def llama(width: int = STUDENT, **fields: Any) -> models.Model:
    """Grouped queries, whose two key heads fewer than four `tensor` devices must all have."""
    shape = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
    }
    return models.build(shape | fields, task="causal_lm")


def bert(width: int = STUDENT, **fields: Any) -> models.Model:
    """A classifier without dropout, as its teacher."""
    shape = {
        "model_type": "bert",
        "vocab_size": VOCAB,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.1,
    }
    return models.build(shape | fields, task="classification", num_labels=LABELS)


FAMILIES = {"llama": llama, "bert": bert}


def make_batch(family: str, step: int) -> dict[str, np.ndarray]:
    """Rows of uneven length; a decoder's hold two documents each."""
    rng = np.random.default_rng(step)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, ROWS)
    mask = (np.arange(LENGTH)[None] < lengths[:, None]).astype(np.int32)
    ids = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32) * mask
    example_id = (np.arange(ROWS) + step * ROWS).astype(np.int32)
    if family == "bert":
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "labels": rng.integers(0, LABELS, ROWS).astype(np.int32),
            "example_id": example_id,
        }
    middle = LENGTH // 2 - 1
    segments = np.where(np.arange(LENGTH)[None] < middle, 1, 2).astype(np.int32) * mask
    positions = np.where(segments == 2, np.arange(LENGTH)[None] - middle, np.arange(LENGTH)[None]).astype(np.int32)
    following = np.roll(segments, -1, axis=1)
    following[:, -1] = 0
    labels = np.where((segments > 0) & (following == segments), np.roll(ids, -1, axis=1), -100).astype(np.int32)
    return {
        "input_ids": ids,
        "segment_ids": segments,
        "positions": positions * mask,
        "labels": labels,
        "example_id": example_id,
    }


def make_step(family: str, sizes: tuple[int, int, int], *, fused: str = "off", optimizer: Any = None, **options: Any):
    """(step, optimizer) of a student against a wider teacher."""
    data, fsdp, tensor = sizes
    mesh = make_mesh(ParallelConfig(data=data, fsdp=fsdp, tensor=tensor))
    if optimizer is None:
        optimizer, _ = build_optimizer(TrainConfig(steps=10, learning_rate=1e-2), 10)
    step = make_train_step(
        student=FAMILIES[family](),
        teachers=[OnlineTeacher(FAMILIES[family](TEACHER))],
        objective=make_objective(TERMS, [1.0], fused=fused),
        optimizer=optimizer,
        mesh=mesh,
        **options,
    )
    return step, optimizer


def start(family: str, step: TrainStep, optimizer: Any) -> tuple[Any, Any]:
    """A fresh state and the teacher's parameters, both placed."""
    state = init_state(FAMILIES[family](), optimizer, jax.random.key(0), step.mesh)
    teacher = jax.jit(FAMILIES[family](TEACHER).init)(jax.random.key(7))
    return state, step.put_params([teacher])


def train(family: str, step: TrainStep, state: Any, teacher: Any, steps: range) -> tuple[Any, list[float]]:
    """(state, each step's loss) over the batches of these steps."""
    found = []
    for number in steps:
        state, metrics = step(state, teacher, make_batch(family, number))
        total, count = metrics["loss"]
        found.append(float(np.asarray(total)) / float(np.asarray(count)))
    return state, found


SGD = optax.sgd(0.3)
