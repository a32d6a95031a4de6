"""The terms of a language model computed together, against the same terms from whole logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.config.loss_schema import (
    CrossEntropyTerm,
    DivergenceTerm,
    JensenShannonTerm,
    LogitMSETerm,
    ZLossTerm,
)
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.distill import make_objective
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import make_mesh

B, S, V, WIDTHS = 8, 5, 24, (6, 10, 7)
CE, Z = CrossEntropyTerm("cross_entropy", weight=0.3), ZLossTerm("z_loss", weight=0.01)
KL = DivergenceTerm("forward_kl", weight=0.7, temperature=2.0)
REVERSE = DivergenceTerm("reverse_kl", weight=0.5, temperature=1.5)
JSD = JensenShannonTerm("jensen_shannon", weight=0.9, temperature=2.0, beta=0.3)


@pytest.fixture
def data():
    """Heads of a student and two teachers, the student's with a bias; half of the labels are ignored."""
    rng = np.random.default_rng(0)
    heads = [
        {
            "input": jnp.asarray(rng.normal(0, 1, (B, S, width)), jnp.float32),
            "kernel": jnp.asarray(rng.normal(0, 1, (width, V)), jnp.float32),
        }
        for width in WIDTHS
    ]
    heads[0]["bias"] = jnp.asarray(rng.normal(0, 1, V), jnp.float32)
    labels = rng.integers(0, V - 4, (B, S)).astype(np.int32)
    labels[rng.random((B, S)) < 0.5] = -100
    batch = {"labels": jnp.asarray(labels), "example_id": jnp.arange(B, dtype=jnp.int32)}
    return heads, batch


def signals(head):
    logits = jnp.einsum("bsd,dv->bsv", head["input"], head["kernel"])
    return {"head": head, "logits": logits + head["bias"].reshape(1, 1, -1) if "bias" in head else logits}


def evaluate(objective, data, teachers, mesh=None):
    """((loss, metrics), gradient of the student's head)."""
    heads, batch = data
    wanted = objective.student_outputs

    def loss(head):
        student = {name: signals(head)[name] for name in wanted}
        taught = [signals(other) for other in heads[1 : 1 + teachers]]
        return objective(student, taught, batch, counts=objective.counts(batch), mesh=mesh)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(heads[0])


@pytest.mark.parametrize(
    ("terms", "vocab_size", "layout"),
    [
        *((terms, None, None) for terms in [(KL, CE), (CE,), (KL,), (REVERSE, CE), (JSD, Z), (CE, Z)]),
        ((KL, CE, Z), V - 3, None),
        *(((KL, CE, Z), None, layout) for layout in [(2, 2, 2), (8, 1, 1), (2, 1, 3)]),
        ((JSD, CE), V - 3, (2, 2, 2)),
        ((CE,), V - 3, (1, 1, 8)),
    ],
)
def test_fused_terms_are_the_dense_ones(data, terms, vocab_size, layout):
    teachers = 2 if KL in terms or JSD in terms or REVERSE in terms else 0
    weights = (1.0, 3.0)[:teachers]
    mesh = None
    if layout is not None:
        sizes = dict(zip(("data", "fsdp", "tensor"), layout, strict=True))
        mesh = jax.sharding.Mesh(
            np.asarray(jax.devices()[: np.prod(layout)]).reshape(layout),
            tuple(sizes),
            axis_types=(jax.sharding.AxisType.Auto,) * 3,
        )
    dense = evaluate(make_objective(terms, weights, vocab_size=vocab_size), data, teachers)
    fused_objective = make_objective(terms, weights, fused="on", vocab_size=vocab_size)
    assert "logits" not in fused_objective.student_outputs
    assert fused_objective.teacher_outputs == ({"head": None} if teachers else {})
    fused = evaluate(fused_objective, data, teachers, mesh)
    (_, metrics), _ = dense
    metrics.pop("accuracy")
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old, rtol=2e-5, atol=2e-6), fused, dense)


def test_no_label_at_all_is_no_loss(data):
    heads, batch = data
    batch = {**batch, "labels": jnp.full((B, S), -100, jnp.int32)}
    (loss, _), gradient = evaluate(make_objective((KL, CE, Z), (1.0,), fused="on"), (heads, batch), 1)
    assert loss == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ((KL, LogitMSETerm("logit_mse")), "logit_mse is none of"),
        ((KL, REVERSE), "more than one divergence"),
        ((KL, CrossEntropyTerm("cross_entropy", label_smoothing=0.1)), "label smoothing"),
        ((DivergenceTerm("soft_cross_entropy"), CE), "soft_cross_entropy is none of"),
    ],
)
def test_terms_that_cannot_be_fused(terms, reason):
    with pytest.raises(ConfigError, match=reason):
        make_objective(terms, (1.0,), fused="on")
    assert make_objective(terms, (1.0,), fused="auto").fused is None


def test_the_most_confident_teacher_needs_whole_logits():
    with pytest.raises(ConfigError, match="known from whole logits only"):
        make_objective((KL,), (1.0, 1.0), fused="on", teacher_choice="confidence")
    assert make_objective((KL,), (1.0, 1.0), fused="auto", teacher_choice="confidence").fused is None
    assert make_objective((KL,), (1.0,), fused="auto", teacher_choice="confidence").fused is not None


def test_one_device_needs_no_collective(data):
    heads, batch = data
    objective = make_objective((KL, CE), (1.0,), fused="on")
    mesh = make_mesh(ParallelConfig(), devices=jax.devices()[:1])
    text = (
        jax.jit(lambda h: objective({"head": h[0]}, [{"head": h[1]}], batch, counts=objective.counts(batch), mesh=mesh))
        .lower(heads)
        .as_text()
    )
    assert "all_reduce" not in text
