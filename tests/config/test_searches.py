"""Searches: which rounds and students they stand for, and which contradict their stage."""

from __future__ import annotations

import pytest
from raw_runs import assert_one_problem, problems, run, stage

from jaxdistill.config import build_chain, describe, run_from_dict
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.resolved import differences, resolved_dict
from jaxdistill.config.schema import RangeConfig
from jaxdistill.config.searches import trial_variant

RATES = {"low": 1e-4, "high": 1e-2, "log": True}


def searched(*, task=(), **keys):
    return run(stage("teacher", teacher=None), stage("student", sweep=keys, **dict(task)))


def chain_of(**keys):
    return build_chain(run_from_dict(searched(**keys)))


def test_trials_are_cut_into_rounds():
    found = chain_of(trials=10, learning_rate=RATES, kd_weight=[0.5, 0.9]).stage("student")
    assert found.variants == ()
    assert found.search is not None
    assert [list(numbers) for numbers in found.search.rounds] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert found.search.space == {"learning_rate": RangeConfig(1e-4, 1e-2, True), "kd_weight": (0.5, 0.9)}
    assert len(chain_of(trials=3, seed=[1, 2]).stage("student").search.rounds) == 1


def test_extremes_have_every_term_and_every_listed_temperature():
    found = chain_of(trials=4, temperature=[1, 3], kd_weight={"low": 0, "high": 1}).stage("student")
    temperatures = {term.temperature for terms in found.losses for term in terms if hasattr(term, "temperature")}
    assert {1.0, 3.0} <= temperatures
    assert any(all(term.weight > 0 for term in terms) and len(terms) == 2 for terms in found.losses)


def test_a_trial_is_a_student_of_its_numbers():
    found = chain_of(trials=4, learning_rate=RATES, temperature=[1, 3], kd_weight=[0.9]).stage("student")
    numbers = {"learning_rate": 2e-3, "temperature": 3.0, "kd_weight": 0.9}
    variant = trial_variant(found.config, found.terms, numbers, number=7, seed=5)
    assert variant.label == "trial 7: learning_rate=0.002, temperature=3, kd_weight=0.9"
    assert (variant.learning_rate, variant.seed) == (2e-3, 5)
    assert variant.terms == (
        DivergenceTerm("forward_kl", weight=0.9, temperature=3.0),
        CrossEntropyTerm("cross_entropy", weight=0.1),
    )


def test_the_table_says_that_it_is_searched():
    (_, row) = describe(chain_of(trials=10, learning_rate=RATES))
    assert row["student"].endswith(" × 10, searched in 3 rounds")


def test_it_is_written_out_and_another_search_is_another_run():
    first, second = (
        resolved_dict(run_from_dict(searched(trials=trials, learning_rate={**RATES, "high": high})))
        for trials, high in ((8, 1e-2), (12, 1e-3))
    )
    assert first["stages"][1]["sweep"]["learning_rate"] == RATES
    assert resolved_dict(run_from_dict(first)) == first
    assert differences(first, second) == [
        "stages.student.sweep.learning_rate.high: 0.01 → 0.001",
        "stages.student.sweep.trials: 8 → 12",
    ]


CASES = {
    "no trials": (searched(learning_rate=RATES), "stages.1.sweep.learning_rate: got a range, in which only a search"),
    "together alone": (
        searched(seed=[1, 2], together=2),
        "stages.1.sweep.together: says how many of a search's trials",
    ),
    "together above": (
        searched(trials=4, together=8, seed=[1, 2]),
        "stages.1.sweep.together: got 8; expected at most trials, which is 4",
    ),
    "too many together": (searched(trials=999, together=300, seed=[1, 2]), "stages.1.sweep.together: got 300 students"),
    "nothing": (searched(trials=4), "stages.1.sweep: lists nothing"),
    "upside down": (
        searched(trials=4, temperature={"low": 8, "high": 1}),
        "stages.1.sweep.temperature: got low 8 and high 1; expected low below high",
    ),
    "one number": (searched(trials=4, temperature=3.0), "stages.1.sweep.temperature: got 3.0; expected a list or a"),
    "no rate": (
        searched(trials=4, learning_rate={**RATES, "low": 0}),
        "stages.1.sweep.learning_rate.low: got 0.0; expected a number above 0",
    ),
    "no weight": (
        searched(trials=4, kd_weight={"low": 0.5, "high": 1.5}),
        "stages.1.sweep.kd_weight.high: got 1.5; expected a number from 0 to 1",
    ),
    "no logarithm": (
        searched(trials=4, kd_weight={"low": 0, "high": 1, "log": True}),
        "stages.1.sweep.kd_weight.low: got 0.0 with log: true; expected a number above 0",
    ),
    "a range of seeds": (searched(trials=4, seed={"low": 0, "high": 9}), "stages.1.sweep.seed: got {'low': 0, 'high'"),
    "no metric": (
        searched(trials=4, seed=[1, 2], task={"checkpoint": {"best": "last"}}),
        "stages.1.sweep.trials: checkpoint.best is 'last'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradiction(name):
    assert_one_problem(*CASES[name])


def test_a_mistyped_bound():
    found = problems(searched(trials=4, temperature={"lo": 1, "high": 2}))
    assert any(line.startswith("stages.1.sweep.temperature.low: missing") for line in found)


def test_everything_that_is_wrong_is_said_at_once():
    raw = searched(learning_rate={**RATES, "low": -1}, temperature={"low": 2, "high": 2}, together=4)
    assert [line.split(":")[0].removeprefix("stages.1.sweep.") for line in problems(raw)] == [
        "temperature",
        "temperature",
        "learning_rate.low",
        "learning_rate",
        "together",
    ]


def test_a_language_models_cache_knows_listed_temperatures_alone():
    data = {"task": "causal_lm", "train": {"path": "a.txt"}, "text": ["text"]}
    llama = {"architecture": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    llama["intermediate_size"] = 16
    raw = searched(trials=4, temperature={"low": 1, "high": 2}, task={"teacher_cache": "disk", "student": llama})
    raw["stages"][0]["student"] = llama
    line = "stages.1.sweep.temperature: a teacher_cache on disk keeps the normaliser at declared temperatures"
    assert any(found.startswith(line) for found in problems({**raw, "data": data}))
