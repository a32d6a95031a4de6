"""What no term reads is not computed: attention of one layer asked for, attention of one layer given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxdistill import models
from jaxdistill.config.loss_schema import CosineTerm, HiddenStateTerm, PresetConfig, RelationTerm
from jaxdistill.config.recipes import expand_loss
from jaxdistill.distill import make_objective
from jaxdistill.models import stack

B, S, D, N, V = 3, 6, 8, 2, 20
STUDENT_DEPTH, TEACHER_DEPTH = 3, 5
FIELDS = {
    "vocab_size": V,
    "hidden_size": D,
    "num_attention_heads": N,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
BATCHES = {
    "bert": {"attention_mask": jnp.ones((B, S), jnp.int32), "labels": jnp.zeros(B, jnp.int32)},
    "llama": {"segment_ids": jnp.ones((B, S), jnp.int32), "labels": jnp.zeros((B, S), jnp.int32)},
}


@pytest.fixture(autouse=True)
def scanned(monkeypatch):
    """Layers run as a scan, as they do off the CPU: what is kept of several layers is stacked there."""
    monkeypatch.setattr(stack, "_LOOP_ON_CPU", 0)


def build(family, depth):
    task = "classification" if family == "bert" else "causal_lm"
    return models.build(FIELDS | {"model_type": family, "num_hidden_layers": depth}, task=task)


def computed(function, *args):
    """Shapes of everything a function computes, inside scans and custom rules too."""
    found = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.update(tuple(out.aval.shape) for out in equation.outvars)
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def traced(objective, family):
    """Shapes in the forward pass of student, teacher and loss."""
    student, teacher = build(family, STUDENT_DEPTH), build(family, TEACHER_DEPTH)
    batch = BATCHES[family] | {
        "input_ids": jnp.ones((B, S), jnp.int32),
        "example_id": jnp.arange(B, dtype=jnp.int32),
    }

    def loss(ours, theirs, batch):
        learned = student.apply(ours, batch, objective.student_outputs)
        taught = teacher.apply(theirs, batch, objective.outputs_of(0))
        return objective(learned, [taught], batch, counts=objective.counts(batch))[0]

    return computed(loss, models.parameter_shapes(student), models.parameter_shapes(teacher), batch)


def stacked(shapes, tail):
    """Of how many layers arrays of this shape are kept together."""
    return {shape[0] for shape in shapes if len(shape) == len(tail) + 1 and shape[1:] == tail}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_one_layers_attention_is_all_there_is(family):
    depths = (STUDENT_DEPTH, TEACHER_DEPTH)
    minilm = make_objective(expand_loss(PresetConfig("minilm"), has_teacher=True), [1.0], depths=depths)
    assert minilm.student_outputs == {"attention_scores": (2,), "qkv": (2,)}
    assert minilm.outputs_of(0) == {"attention_scores": (4,), "qkv": (4,)}
    shapes = traced(minilm, family)
    assert stacked(shapes, (B, N, S, S)) == {1}
    assert stacked(shapes, (3, B, S, N, D // N)) == {1}
    assert not stacked(shapes, (B, S, D)) - {1}
    assert (B, S, V) not in shapes  # and no logits
    more = make_objective([RelationTerm("relation_kl", layers="uniform")], [1.0], depths=depths)
    assert more.outputs_of(0) == {"qkv": (1, 2, 4)}
    assert 3 in stacked(traced(more, family), (3, B, S, N, D // N))


def test_hidden_states_no_term_reads_are_absent():
    depths = (STUDENT_DEPTH, TEACHER_DEPTH)
    objective = make_objective([CosineTerm("cosine")], [1.0], depths=depths)
    assert (objective.student_outputs, objective.outputs_of(0)) == (
        {"hidden_states": (STUDENT_DEPTH,)},
        {"hidden_states": (TEACHER_DEPTH,)},
    )
    assert not stacked(traced(objective, "bert"), (B, S, D)) - {1}
    all_layers = make_objective([HiddenStateTerm("hidden_state_mse")], [1.0], depths=depths)
    assert 3 in stacked(traced(all_layers, "bert"), (B, S, D))


def test_two_terms_share_what_both_read():
    terms = [
        HiddenStateTerm("hidden_state_mse"),
        CosineTerm("cosine"),
        HiddenStateTerm("hidden_state_mse", layers=((0, 0),)),
    ]
    objective = make_objective(terms, [1.0], depths=(STUDENT_DEPTH, TEACHER_DEPTH))
    assert objective.student_outputs == {"hidden_states": (0, 1, 2, 3)}
    assert objective.outputs_of(0) == {"hidden_states": (0, 2, 3, 5)}
