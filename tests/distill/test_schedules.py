"""Weights and temperatures that change with the optimizer step, against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm, Schedule, TAIDTerm
from jaxdistill.distill import make_objective
from jaxdistill.distill.schedules import make_schedule
from jaxdistill.errors import ConfigError

V, D = 12, 5
LINEAR = Schedule("linear", start=1.0, end=0.0, over=10)


@pytest.fixture(scope="module")
def data():
    """Heads of a student and a teacher over 2 × 3 tokens, two of them without a label."""
    rng = np.random.default_rng(0)

    def head():
        return {
            "input": jnp.asarray(rng.normal(0, 1, (2, 3, D)), jnp.float32),
            "kernel": jnp.asarray(rng.normal(0, 1, (D, V)), jnp.float32),
        }

    labels = jnp.asarray([[1, 2, -100], [3, -100, 5]], jnp.int32)
    return head(), head(), {"labels": labels, "example_id": jnp.arange(2, dtype=jnp.int32)}


def evaluate(objective, data, step):
    """The loss at a step, through one compiled program whatever the step."""
    student, teacher, batch = data
    signals = [{"head": head, "logits": head["input"] @ head["kernel"]} for head in (student, teacher)]

    def loss(step):
        return objective(signals[0], signals[1:], batch, counts=objective.counts(batch), step=step)[0]

    return float(jax.jit(loss)(jnp.int32(step)))


@pytest.mark.parametrize(
    ("schedule", "total", "numbers"),
    [
        (LINEAR, None, {0: 1, 5: 0.5, 10: 0, 99: 0}),
        (Schedule("linear", start=2, end=4), 8, {0: 2, 2: 2.5, 7: 3.75, 8: 4}),
        (Schedule("linear", start=0, end=1, after=0.25, over=0.5), 20, {0: 0, 5: 0, 10: 0.5, 15: 1, 19: 1}),
        (Schedule("cosine", start=3, end=1, over=6), None, {0: 3, 2: 2.5, 3: 2, 4: 1.5, 6: 1}),
        (Schedule("steps", values=(4, 2, 1), at=(3, 5)), None, {0: 4, 2: 4, 3: 2, 4: 2, 5: 1, 50: 1}),
        (Schedule("steps", values=(0, 1), at=(0.5,)), 10, {0: 0, 4: 0, 5: 1, 9: 1}),
    ],
)
def test_numbers_at_steps(schedule, total, numbers):
    made = make_schedule(schedule, total_steps=total)
    got = [float(made.at(jnp.int32(step))) for step in numbers]
    np.testing.assert_allclose(got, list(numbers.values()), atol=1e-6)


def test_shares_need_the_number_of_steps():
    with pytest.raises(ConfigError, match="pass total_steps"):
        make_schedule(Schedule("linear", start=0, end=1), total_steps=None)
    with pytest.raises(ConfigError, match="pass total_steps"):
        make_objective([TAIDTerm("taid")], [1.0])


@pytest.mark.parametrize("fused", ["off", "on"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_scheduled_loss_is_the_constant_one_of_its_step(data, step, fused):
    temperature = Schedule("cosine", start=4.0, end=1.0, over=6)
    scheduled = make_objective(
        [DivergenceTerm("forward_kl", LINEAR, temperature), CrossEntropyTerm("cross_entropy", weight=0.3)],
        [1.0],
        fused=fused,
    )
    weight, now = {0: (1.0, 4.0), 3: (0.7, 2.5)}[step]
    terms = [DivergenceTerm("forward_kl", weight, now), CrossEntropyTerm("cross_entropy", weight=0.3)]
    constant = make_objective(terms, [1.0], fused=fused)
    np.testing.assert_allclose(evaluate(scheduled, data, step), evaluate(constant, data, 0), rtol=1e-5)


def test_taid_moves_from_the_student_to_the_teacher_over_the_stage(data):
    taid = make_objective([TAIDTerm("taid", temperature=2.0)], [1.0], total_steps=4)
    kl = make_objective([DivergenceTerm("forward_kl", temperature=2.0)], [1.0])
    values = [evaluate(taid, data, step) for step in range(5)]
    assert values[0] == 0
    assert values == sorted(values)
    np.testing.assert_allclose(values[4], evaluate(kl, data, 0), rtol=1e-6)


def test_a_term_that_is_never_weighed_is_dropped():
    never = Schedule("steps", values=(0, 0), at=(5,))
    objective = make_objective([DivergenceTerm("forward_kl", never), CrossEntropyTerm("cross_entropy")])
    assert [term.name for term in objective.terms] == ["cross_entropy"]


def test_a_loss_that_changes_needs_the_step(data):
    student, teacher, batch = data
    objective = make_objective([DivergenceTerm("forward_kl", LINEAR)], [1.0])
    signals = [{"logits": head["input"] @ head["kernel"]} for head in (student, teacher)]
    with pytest.raises(ValueError, match="weight of the loss change with the optimizer step: pass step="):
        objective(signals[0], signals[1:], batch, counts=objective.counts(batch))
