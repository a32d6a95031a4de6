"""Plans of tiny chains: what is counted and held, what fits, what is found by searching, and where nothing is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import pytest
from rich.console import Console

from jaxdistill import models
from jaxdistill.config import load_run
from jaxdistill.errors import ConfigError, ModelError
from jaxdistill.plan import formula, make_planning, plan_run
from jaxdistill.plan.search import search_run, write_overrides
from jaxdistill.plan.targets import CHIPS

SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
CHAIN = """
name: tiny
data: {task: causal_lm, train: {hub: some/text, split: train}, max_length: 128}
parallel: {data: 1, fsdp: -1}
precision: {compute: bfloat16}
stages:
  - name: assistant
    teacher: {pretrained: some/model}
    student: {architecture: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
              num_key_value_heads: 2, intermediate_size: 96}
    train: {steps: 10, batch_size: 32, warmup: 0, remat: full}
  - name: student
    student: {architecture: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
              num_key_value_heads: 2, intermediate_size: 96}
    train: {steps: 10, batch_size: 32, warmup: 0, remat: full}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("plan")
    (made / "chain.yaml").write_text(CHAIN)
    (made / "config.json").write_text(json.dumps(SHAPE))
    return made


def planning(directory, target="cpu:8", **settings):
    made = make_planning(target, model_configs=[f"some/model={directory / 'config.json'}"], **settings)
    return replace(made, cache_dir=directory / "cache")


@pytest.fixture(scope="module")
def plans(directory):
    before = jax.live_arrays()
    made = plan_run(load_run(directory / "chain.yaml"), planning(directory), Console(quiet=True))
    known = {id(array) for array in before}
    assert not [array for array in jax.live_arrays() if id(array) not in known]  # nothing is allocated
    return made


def teacher_and_student(plan):
    return sum(plan["parameters"]["teachers"]), plan["parameters"]["student"]


def test_every_stage_is_planned_with_the_one_before_as_its_teacher(plans):
    assert [plan["stage"] for plan in plans] == ["assistant", "student"]
    assert plans[1]["parameters"]["teachers"] == [plans[0]["parameters"]["student"]]
    assert plans[0]["mesh"] == {"strategy": "jit", "data": 1, "fsdp": 8, "tensor": 1}
    assert plans[0]["batch"] == [32, 128]


def test_what_is_held_is_an_eighth_of_everything_shared(plans):
    taught, learns = teacher_and_student(plans[0])
    memory = plans[0]["memory"]
    vectors = 5 * 64 * 2 + 5 * 32 * 4  # norms are whole on every device
    assert 2 * taught / 8 <= memory["teacher"] <= 2 * taught / 8 + vectors
    assert 4 * learns / 8 <= memory["student"] <= 4 * learns / 8 + vectors
    assert memory["optimizer"] == 2 * memory["student"] + 4
    assert memory["batch"] == (4 * 128 * 4 + 4) * 32 // 8
    assert memory["peak"] == sum(memory[name] for name in ("teacher", "student", "optimizer", "batch", "working"))
    assert plans[0]["fits"]


def test_flops_are_the_formulas_and_one_forward_pass_more(plans):
    student = models.build(
        {**SHAPE, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 96},
        task="causal_lm",
    )
    teacher = models.build(SHAPE, task="causal_lm")
    rows, length = 32, 128
    tokens, of_attention = rows * length, 4 * 128
    weights = [2 * (4 * 64 * 64 + 3 * 64 * 192) + 64 * 512, 2 * (4 * 32 * 32 + 3 * 32 * 96) + 32 * 512]
    by_hand = tokens * (2 * weights[0] + 6 * weights[1] + of_attention * (2 * 64 + 3 * 2 * 32))
    assert formula.step_flops(student, [teacher], rows=rows, length=length) == by_hand
    assert plans[0]["flops"]["formula"] == by_hand
    again = tokens * (2 * (weights[1] - 32 * 512) + of_attention * 2 * 32)
    assert by_hand < plans[0]["flops"]["counted"] <= 1.02 * (by_hand + again)


def test_traffic_is_beside_the_least_there_can_be(plans):
    taught, learns = teacher_and_student(plans[0])
    found = plans[0]["collectives"]
    assert found["fsdp_bound"] == round(7 / 8 * 2 * (taught + 3 * learns))
    assert found["total"] == sum(found["bytes"].values()) > 0
    assert "unknown_loops" not in found


def test_no_array_is_as_large_as_logits(plans, directory):
    assert plans[0]["logits_sized"] == []
    run = load_run(directory / "chain.yaml", ["stages.assistant.fused=off"])
    (dense,) = plan_run(run, planning(directory, stages=["assistant"]), Console(quiet=True))
    assert any("512" in shape for shape in dense["logits_sized"])


def test_a_cached_teacher_takes_no_memory_but_its_answers(directory, plans):
    overrides = ["teacher_cache=disk", "parallel.fsdp=1", "parallel.data=-1"]
    run = load_run(directory / "chain.yaml", overrides)
    (cached,) = plan_run(run, planning(directory, stages=["assistant"]), Console(quiet=True))
    assert cached["memory"]["teacher"] == 0
    assert cached["memory"]["batch"] > plans[0]["memory"]["batch"]
    assert cached["flops"]["formula"] < plans[0]["flops"]["formula"]


@pytest.mark.slow
def test_a_sweep_is_planned_with_all_its_students(directory):
    """Seeds alone change nothing of the program, and neither does what rate each student is trained at."""

    def planned(*overrides):
        run = load_run(directory / "chain.yaml", ["parallel={data: 1}", "stages.student.train.remat=none", *overrides])
        (plan,) = plan_run(run, planning(directory, "cpu:1", stages=["student"]), Console(quiet=True))
        return plan

    alone = planned()
    before = {id(array) for array in jax.live_arrays()}
    swept = planned("stages.student.sweep={seed: [1, 2, 3]}")
    assert not [array for array in jax.live_arrays() if id(array) not in before]
    assert (alone["students"], swept["students"]) == (1, 3)
    for name, times in {"student": 3, "optimizer": 3, "teacher": 1, "batch": 1}.items():
        assert swept["memory"][name] == times * alone["memory"][name]
    assert swept["memory"]["peak"] - alone["memory"]["peak"] > 2 * alone["memory"]["student"]
    student = models.build({**SHAPE, **SMALL}, task="causal_lm")
    of_one = formula.step_flops(student, (), rows=32, length=128)
    assert swept["flops"]["formula"] - alone["flops"]["formula"] == 2 * of_one
    assert swept["flops"]["counted"] - alone["flops"]["counted"] == pytest.approx(2 * of_one, rel=0.02)
    rates = "{learning_rate: {low: 1.0e-4, high: 1.0e-3, log: true}, trials: 5, together: 3}"
    searched = planned(f"stages.student.sweep={rates}", "stages.student.checkpoint={best: loss}")
    assert searched == swept


def test_results_are_kept_and_read_back(plans, directory):
    kept = sorted((directory / "cache").iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    again = plan_run(load_run(directory / "chain.yaml"), planning(directory), Console(quiet=True))
    assert again == plans
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_what_is_more_than_there_is_does_not_fit_and_is_told_what_would(plans, directory):
    small = planning(directory)
    target = replace(small.target, chip=replace(CHIPS["cpu"], memory=plans[0]["memory"]["peak"] - 1))
    made = plan_run(
        load_run(directory / "chain.yaml"),
        replace(small, target=target, cache_dir=directory / "other", stages=("assistant",)),
        Console(quiet=True),
    )
    memory = made[0]["memory"]
    assert not made[0]["fits"]
    assert memory["margin"] == -1
    assert any(option["setting"].startswith("train.accumulate") for option in memory["settings"])
    assert memory["verdict"] == "the first alone should fit"


def test_what_does_not_fit_by_nobody_knows_how_much_is_told_what_needs_less(plans, directory):
    other = directory / "no figures"
    other.mkdir()
    unknown = {"fits": False, "peak": None, "needed": None, "limit": 2**30}
    for path in (directory / "cache").iterdir():
        (other / path.name).write_text(json.dumps(json.loads(path.read_text()) | unknown))
    settings = replace(planning(directory, stages=["student"]), cache_dir=other)
    (made,) = plan_run(load_run(directory / "chain.yaml"), settings, Console(quiet=True))
    assert made["memory"]["settings"]
    assert "is not known" in made["memory"]["verdict"]


def test_meshes_that_a_strategy_cannot_have_are_not_searched(directory):
    run = load_run(directory / "chain.yaml", ["parallel={strategy: pmap}"])
    found = search_run(run, planning(directory, stages=["student"]), Console(quiet=True), tries=0)
    assert {(row["data"], row["fsdp"], row["tensor"]) for row in found.rows} == {(8, 1, 1)}


@pytest.mark.slow
def test_searching_finds_what_fits_and_a_run_takes_it(directory, tmp_path):
    run = load_run(directory / "chain.yaml")
    found = search_run(run, planning(directory, stages=["student"]), Console(quiet=True), tries=1)
    assert found.winner is not None
    assert found.plans[0]["fits"]
    seconds = [row["seconds_per_million_tokens"] for row in found.rows]
    assert seconds == sorted(seconds)
    written = write_overrides(found, tmp_path / "overrides", directory / "chain.yaml", Console(quiet=True))
    assert written is not None
    changed = load_run(directory / "chain.yaml", written.read_text().split())
    assert changed == found.winner.of(run)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.assistant.train.batch_size=12"], "cannot be divided evenly between 8"),
        (["parallel.fsdp=1", "parallel.tensor=-1"], "cannot share the attention heads"),
        (["parallel.fsdp=3", "parallel.data=-1"], "cannot be divided by"),
        (["stages.assistant.teacher.pretrained=other/model"], "--model-config other/model=FILE"),
        (["stages.assistant.train={epochs: 1}"], "write train.steps"),
    ],
)
def test_what_cannot_be_planned_is_one_line(directory, overrides, said):
    with pytest.raises((ConfigError, ModelError), match=said) as caught:
        plan_run(load_run(directory / "chain.yaml", overrides), planning(directory), Console(quiet=True))
    assert "\n" not in str(caught.value)


def test_stages_that_are_not_there(directory):
    with pytest.raises(ConfigError, match="did you mean 'student'"):
        plan_run(load_run(directory / "chain.yaml"), planning(directory, stages=["studnet"]), Console(quiet=True))


def test_a_roofline_is_the_longest_of_what_is_waited_for():
    chip = CHIPS["v5e"]
    roof = formula.roofline(
        chip, flops=197e12, arguments=10**9, temporaries=10**9, collectives={"all-gather": 180 * 10**9}
    )
    assert roof is not None
    assert (roof.compute, roof.network) == (1.0, 1.0)
    assert roof.seconds == 1.0
    money = formula.per_day(0.5, tokens=1000, devices=4, price=2.0)
    assert money["tokens_per_day"] == 1000 * 2 * 86400
    assert money["cost_per_day"] == 4 * 24 * 2.0
    assert formula.roofline(CHIPS["cpu"], flops=1.0, arguments=0, temporaries=0, collectives={}) is None
