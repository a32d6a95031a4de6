"""What optuna is asked: the same again, what it was told, and not without it."""

from __future__ import annotations

import math
import sys

import pytest
from rich.console import Console

from jaxdistill.config import build_chain, run_from_dict
from jaxdistill.config.schema import RangeConfig
from jaxdistill.errors import ConfigError
from jaxdistill.stages.prepare import Preparation
from jaxdistill.stages.proposals import propose

SPACE = {
    "temperature": RangeConfig(1.0, 8.0),
    "learning_rate": RangeConfig(1e-4, 1e-2, True),
    "kd_weight": (0.5, 0.7, 0.9),
    "seed": (3, 1),
}


def miss(numbers):
    """How far a point is from the best one."""
    return (numbers["temperature"] - 5) ** 2 / 10 + (math.log10(numbers["learning_rate"]) + 3) ** 2


def test_points_are_in_their_space():
    pytest.importorskip("optuna")
    points = propose(SPACE, [], count=12, maximize=True, seed=1)
    assert len({tuple(point.values()) for point in points}) == 12
    for point in points:
        assert list(point) == list(SPACE)
        assert 1 <= point["temperature"] <= 8
        assert 1e-4 <= point["learning_rate"] <= 1e-2
        assert point["kd_weight"] in SPACE["kd_weight"]
        assert point["seed"] in SPACE["seed"]
        assert isinstance(point["seed"], int)


@pytest.mark.parametrize("told", [False, True])
def test_the_same_is_proposed_again(told):
    pytest.importorskip("optuna")
    before = [(point, miss(point)) for point in propose(SPACE, [], count=4, maximize=False, seed=1)] if told else []
    first, second, other = (propose(SPACE, before, count=4, maximize=False, seed=seed) for seed in (2, 2, 3))
    assert first == second != other


def test_what_was_told_decides():
    pytest.importorskip("optuna")
    points = propose(SPACE, [], count=8, maximize=False, seed=1)
    told = [(point, miss(point)) for point in points]
    turned = [(point, -value) for point, value in told]
    lost = [(point, None if value == max(map(miss, points)) else value) for point, value in told]
    proposed = propose(SPACE, told, count=4, maximize=False, seed=2)
    assert proposed != propose(SPACE, turned, count=4, maximize=False, seed=2)
    assert proposed == propose(SPACE, turned, count=4, maximize=True, seed=2)
    assert proposed == propose(SPACE, lost, count=4, maximize=False, seed=2)  # not finite is worse than any


def test_rounds_come_nearer():
    pytest.importorskip("optuna")
    told = []
    for seed in range(10):
        told += [(point, miss(point)) for point in propose(SPACE, told, count=4, maximize=False, seed=seed)]
    values = [value for _, value in told]
    assert sum(values[-12:]) < 0.6 * sum(values[:12])


def test_without_optuna_it_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    student = {"architecture": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    student["intermediate_size"] = 16
    raw = {
        "name": "tiny",
        "data": {"train": {"asset": "sentiment", "split": "train"}},
        "tokenizer": "nobody/has-this",
        "stages": [
            {
                "name": "student",
                "teacher": None,
                "student": student,
                "train": {"epochs": 1},
                "sweep": {"trials": 8, "learning_rate": {"low": 1e-4, "high": 1e-2}},
            }
        ],
    }
    with pytest.raises(ConfigError, match=r"sweep\.trials: .*pip install 'jaxdistill\[search\]'"):
        Preparation(build_chain(run_from_dict(raw)), Console(quiet=True)).survey()
