"""What is in the step's program (StableHLO): of a teacher, the layers that a term reads and no others."""

from __future__ import annotations

import re

import jax
from toy_encoder import make_batch

from jaxdistill import models
from jaxdistill.config.loss_schema import HiddenStateTerm
from jaxdistill.config.schema import TrainConfig
from jaxdistill.distill import OnlineTeacher, make_objective
from jaxdistill.distill import teacher as teacher_module
from jaxdistill.models import stack
from jaxdistill.train import build_optimizer, init_state, make_train_step

B, S = 4, 6
SHAPE = {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 16}
STUDENT = SHAPE | {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
TEACHER = SHAPE | {"num_hidden_layers": 5, "hidden_size": 20, "num_attention_heads": 4, "intermediate_size": 28}


def stacked(layers, *tails):
    """For each shape, of how many layers the step keeps such arrays together, if of more than one."""
    student, teacher = models.build(STUDENT), models.build(TEACHER)
    objective = make_objective(
        [HiddenStateTerm("hidden_state_mse", layers=tuple(map(tuple, layers)), projection="shared")],
        [1.0],
        depths=(2, 5),
        widths=(8, 20),
    )
    optimizer, _ = build_optimizer(TrainConfig(steps=2, warmup=0), 2)
    step = make_train_step(student=student, teachers=[OnlineTeacher(teacher)], objective=objective, optimizer=optimizer)
    state = init_state(student, optimizer, jax.random.key(0), step.mesh, projections=objective.projections)
    taught = step.put_params([jax.jit(teacher.init)(jax.random.key(1))])
    text = step.lower(state, taught, make_batch(rows=B, length=S, fillers=1, unlabelled=1)).as_text()
    return [
        {int(n) for n in re.findall(rf"tensor<(\d+)x{'x'.join(map(str, tail))}xf32>", text)} - {1} for tail in tails
    ]


def test_only_the_teachers_layers_that_are_read_are_in_the_program(monkeypatch):
    """Off the CPU's loop over layers, what is read of several layers is stacked; attention is read of none."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)
    monkeypatch.setattr(teacher_module, "_UNSTACK_ON_CPU", 0)
    hidden, attention = (B, S, 20), (B, 4, S, S)
    assert stacked([[-1, -1]], hidden, attention) == [set(), set()]
    assert stacked([[1, 2], [2, 4]], hidden, attention) == [{2}, set()]
