"""Sweeps: which students they stand for, and which contradict their stage."""

from __future__ import annotations

import pytest
from raw_runs import assert_one_problem, run, stage

from jaxdistill.config import build_chain, run_from_dict
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm


def swept(**lists):
    return run(stage("teacher", teacher=None), stage("student", sweep=lists))


def test_every_combination_is_a_student():
    chain = build_chain(run_from_dict(swept(temperature=[1, 4], kd_weight=[0.9], seed=[3, 5])))
    found = chain.stage("student").variants
    assert [variant.label for variant in found] == [
        f"temperature={temperature}, kd_weight=0.9, seed={seed}" for temperature in (1, 4) for seed in (3, 5)
    ]
    assert [variant.seed for variant in found] == [3, 5, 3, 5]
    assert found[2].terms == (
        DivergenceTerm("forward_kl", weight=0.9, temperature=4.0),
        CrossEntropyTerm("cross_entropy", weight=0.1),
    )
    assert chain.stage("teacher").variants == ()


def test_a_learning_rate_leaves_the_loss():
    (slow, fast) = build_chain(run_from_dict(swept(learning_rate=[1e-4, 1e-3]))).stage("student").variants
    assert (slow.learning_rate, fast.learning_rate) == (1e-4, 1e-3)
    assert slow.terms == fast.terms


CASES = {
    "nothing": (swept(), "stages.1.sweep: lists nothing; expected temperature, kd_weight, learning_rate, seed"),
    "twice": (swept(seed=[1, 1]), "stages.1.sweep.seed: got [1, 1]; expected each once"),
    "too many": (swept(seed=list(range(300))), "stages.1.sweep: 300 combinations"),
    "nothing in common": (swept(kd_weight=[0, 1]), "stages.1.sweep.kd_weight: got 0 and 1 alone"),
    "no teacher": (
        run(stage("a", teacher=None, sweep={"temperature": [1, 2]})),
        "stages.0.sweep.temperature: the stage has no teacher",
    ),
    "repeated": (
        run(stage("a", teacher=None, sweep={"seed": [1, 2]}, repeat={"seeds": [1]})),
        "stages.0.sweep: a stage is either swept or repeated",
    ),
    "shared out": (
        run(stage("a", teacher=None, sweep={"seed": [1, 2]}), parallel={"fsdp": 2}),
        "stages.0.sweep: students of a sweep are whole on every device",
    ),
    "other terms": (
        run(
            stage("t", teacher=None),
            stage("a", sweep={"kd_weight": [0.5]}, loss=[{"type": "forward_kl"}, {"type": "logit_mse"}]),
        ),
        "stages.1.sweep.kd_weight: weighs one distillation term w and cross-entropy 1 − w",
    ),
    "no temperature": (
        run(stage("t", teacher=None), stage("a", sweep={"temperature": [1, 2]}, loss=[{"type": "logit_mse"}])),
        "stages.1.sweep.temperature: no term of the loss has a temperature",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradiction(name):
    assert_one_problem(*CASES[name])
