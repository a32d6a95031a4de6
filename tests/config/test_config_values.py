"""Wrong keys and values: every one reported, at its path, in words that say what to write instead."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_runs import problems, run, stage

from jaxdistill.config import run_from_dict, schema

LOSS = (
    "forward_kl, reverse_kl, soft_cross_entropy, jensen_shannon, skewed_kl, taid, dkd, dist, total_variation, "
    "logit_mse, z_loss, hidden_state_mse, embedding_mse, cosine, patient, attention_mse, attention_kl, relation_kl, "
    "similarity_preserving, contrastive, phase"
)


def with_value(path: str, value: object) -> dict:
    """The standard run with one value written at a path."""
    raw = copy.deepcopy(run())
    *parents, last = path.split(".")
    here = raw
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    here[int(last) if isinstance(here, list) else last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        # unknown keys, in every kind of place
        ("seeds", 1, "seeds: unknown key, got 1; did you mean 'seed'?"),
        ("data.max_lenght", 5, "data.max_lenght: unknown key, got 5; did you mean 'max_length'?"),
        ("data.train.spilt", "x", "data.train.spilt: unknown key, got 'x'; did you mean 'split'?"),
        ("stages.1.train.epoch", 1, "stages.1.train.epoch: unknown key, got 1; did you mean 'epochs'?"),
        (
            "stages.1.student.layers",
            1,
            "stages.1.student.layers: unknown key, got 1; did you mean 'num_hidden_layers'?",
        ),
        (
            "stages.1.student.warm_start.embedding",
            "svd",
            "stages.1.student.warm_start.embedding: unknown key, got 'svd'; did you mean 'embeddings'?",
        ),
        ("stages.1.teacher", {"stag": "x"}, "stages.1.teacher.stag: unknown key, got 'x'; did you mean 'stage'?"),
        (
            "stages.1.teacher",
            ["teacher", {"stage": "teacher", "wieght": 2}],
            "stages.1.teacher.1.wieght: unknown key, got 2; did you mean 'weight'?",
        ),
        (
            "stages.1.loss",
            [{"type": "cross_entropy"}, {"type": "forward_kl", "temprature": 2}],
            "stages.1.loss.1.temprature: unknown key, got 2; did you mean 'temperature'?",
        ),
        (
            "stages.1.loss",
            {"preset": "hinton", "temp": 2},
            "stages.1.loss.temp: unknown key, got 2; did you mean 'temperature'?",
        ),
        (
            "stages.1.repeat",
            {"seed": 1, "seeds": [1]},
            "stages.1.repeat.seed: unknown key, got 1; did you mean 'seeds'?",
        ),
        ("stages.1.data.txt", ["a"], "stages.1.data.txt: unknown key, got ['a']; did you mean 'text'?"),
        ("parallel.zzz", 1, "parallel.zzz: unknown key, got 1; expected one of strategy, data, fsdp, tensor"),
        # wrong kinds of values
        ("name", 3, "name: got 3; expected text (in quotes: '3')"),
        ("seed", True, "seed: got true; expected an integer"),
        ("seed", "many", "seed: got 'many'; expected an integer"),
        ("seed", 1.5, "seed: got 1.5; expected an integer"),
        ("seed", -1, "seed: got -1; expected an integer greater than or equal to 0"),
        (
            "stages.1.student.max_position_embeddings",
            2,
            "stages.1.student.max_position_embeddings: got 2; expected an integer greater than or equal to 3",
        ),
        ("seed", 2**32, "seed: got 4294967296; expected an integer less than 4294967296"),
        ("stages.1.repeat", {"seeds": [2**70]}, "stages.1.repeat.seeds.0: got 1180591620717411303424; expected an int"),
        ("stages.1.train.steps", 10**19, "stages.1.train.steps: got 10000000000000000000; expected an integer less"),
        (
            "stages.1.train.steps_per_dispatch",
            0,
            "stages.1.train.steps_per_dispatch: got 0; expected an integer greater",
        ),
        (
            "stages.1.train.steps_per_dispatch",
            "often",
            "stages.1.train.steps_per_dispatch: got 'often'; expected 'auto' or an integer",
        ),
        ("data", [], "data: got an empty list; expected a mapping"),
        ("data.text", "sentence", "data.text: got 'sentence'; expected a list or a mapping (keys: prompt, completion)"),
        ("data.text", [], "data.text: got an empty list; expected at least 1 item(s)"),
        ("data.text", ["a", "b", "c"], "data.text: got ['a', 'b', 'c']; expected at most 2 item(s)"),
        ("data.label_names", [0, "x"], "data.label_names.0: got 0; expected text (in quotes: '0')"),
        ("data.validation_share", 1.0, "data.validation_share: got 1.0; expected a number less than 1"),
        (
            "data.batching",
            "bucket",
            "data.batching: got 'bucket'; expected 'padded', 'bucketed' or 'packed'; did you mean 'bucketed'?",
        ),
        ("logging.tensorboard", "maybe", "logging.tensorboard: got 'maybe'; expected true or false"),
        (
            "teacher_cache",
            "disc",
            "teacher_cache: got 'disc'; expected 'off', 'memory' or 'disk'; did you mean 'disk'?",
        ),
        ("stages.1.train.learning_rate", "fast", "stages.1.train.learning_rate: got 'fast'; expected a number"),
        ("stages.1.train.learning_rate", 0, "stages.1.train.learning_rate: got 0; expected a number greater than 0"),
        ("stages.1.train.learning_rate", False, "stages.1.train.learning_rate: got false; expected a number"),
        (
            "stages.1.train.learning_rate",
            float("inf"),
            "stages.1.train.learning_rate: got inf; expected a finite number",
        ),
        ("stages.1.name", "a b", "stages.1.name: got 'a b'; expected letters, digits, '_' and '-', beginning with"),
        ("stages.1.checkpoint.best", "acc", "did you mean 'accuracy'?"),
        ("stages.1.student.architecture", "brt", "'qwen2' or 'qwen3'; did you mean 'bert'?"),
        ("stages.1.train", 3, "stages.1.train: got 3; expected a mapping"),
        ("stages.1", "student", "stages.1: got 'student'; expected a mapping"),
        ("stages", {}, "stages: got an empty mapping; expected a list"),
        ("stages", [], "stages: got an empty list; expected at least 1 item(s)"),
        # unions: only the member that was meant speaks
        ("stages.1.teacher", 3, "stages.1.teacher: got 3; expected text or a mapping (keys: stage, pretrained, asset"),
        ("stages.1.teacher", [3], "stages.1.teacher.0: got 3; expected a mapping (keys: stage, pretrained, asset"),
        (
            "stages.1.loss",
            "hinton",
            "stages.1.loss: got 'hinton'; expected a list or a mapping (keys: preset, temperature",
        ),
        (
            "stages.1.loss",
            {"preset": "hintn"},
            "stages.1.loss.preset: got 'hintn'; expected 'hinton', 'txtai', 'distilbert', 'fitnets', 'pkd', "
            "'tinybert', 'minilm', 'minilm_v2' "
            "or 'llama'; did you mean 'hinton'?",
        ),
        (
            "stages.1.loss",
            [{"type": "kl"}],
            f"got type 'kl'; expected one of cross_entropy, {LOSS}; did you mean 'forward_kl'?",
        ),
        (
            "stages.1.loss",
            [{"weight": 1}],
            "stages.1.loss.0: got {'weight': 1}, which has no type; expected type to be one",
        ),
        ("stages.1.loss", [7], "stages.1.loss.0: got 7; expected a mapping with a type (cross_entropy, forward_kl"),
        (
            "stages.1.loss",
            [{"type": "forward_kl", "temperature": 0}],
            "stages.1.loss.0.temperature: got 0; expected a number greater than 0",
        ),
        (
            "stages.1.student.warm_start.layers",
            "unifrm",
            "stages.1.student.warm_start.layers: got 'unifrm'; expected 'uniform', 'first' or 'last'; did you",
        ),
        (
            "stages.1.student.warm_start.layers",
            [0, -1],
            "layers.1: got -1; expected an integer greater than or equal to 0",
        ),
        ("stages.1.student.warm_start.layers", 4, "layers: got 4; expected 'uniform' or 'first' or 'last' or a list"),
        ("stages.1.data.text", "x", "stages.1.data.text: got 'x'; expected a list"),
        ("stages.1.data", "x", "stages.1.data: got 'x'; expected a mapping"),
    ],
)
def test_one_wrong_thing_is_one_line(path, value, line):
    (found,) = problems(with_value(path, value))
    assert line in found
    assert found.startswith(path.split(".")[0])


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("name", "name: missing; expected text"),
        ("data", "data: missing; expected {train: {path: FILE}, ...}"),
        ("stages", "stages: missing; expected a list of stages"),
        ("stages.1.student", "stages.1.student: missing; expected {pretrained: DIR_OR_HUB_ID} or {architecture: bert"),
        ("stages.1.train", "stages.1.train: missing; expected {epochs: N, ...} or {steps: N, ...}"),
    ],
)
def test_missing_values(path, line):
    raw = with_value(path, None)
    *parents, last = path.split(".")
    here = raw
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here[part]
    del here[last]
    (found,) = problems(raw)
    assert found.startswith(line)


def test_everything_wrong_is_reported_at_once_with_contradictions_elsewhere():
    raw = run(
        stage("teacher", teacher=None, trian={"epochs": 1}),
        stage("student", teacher="techer", train={"epochs": "three"}),
        stage("late", train={"epochs": 1, "steps": 5, "batch_size": 5, "accumulate": 2}, data={"max_lenght": 3}),
        {"name": "empty"},
        sed=1,
    )
    found = problems(raw)
    starts = [
        "sed: unknown key",
        "stages.0.trian: unknown key",
        "stages.1.train.epochs: got 'three'; expected a number",
        "stages.1.teacher: no stage is named 'techer'",
        "stages.2.data.max_lenght: unknown key",
        "stages.2.train: got both of epochs and steps",
        "stages.2.train.batch_size: 5 cannot be split into 2",
        "stages.3.student: missing",
        "stages.3.train: missing",
    ]
    assert len(found) == len(starts), found
    for start in starts:
        assert sum(line.startswith(start) for line in found) == 1, start


def test_a_wrong_value_brings_no_complaint_about_its_absence():
    assert len(problems(with_value("stages.1.train.epochs", "x"))) == 1
    assert len(problems(with_value("stages.1.student.architecture", "x"))) == 1
    assert len(problems(with_value("stages.1.student.num_attention_heads", 0))) == 1
    assert len(problems(with_value("data.train", 3))) == 1


def test_several_wrong_values_of_one_loss_are_all_that_is_reported():
    terms = [{"type": "forward_kl", "temprature": 2}, {"type": "kl"}, {"weight": 1}, 7]
    assert [line.split(": ")[0] for line in problems(with_value("stages.1.loss", terms))] == [
        "stages.1.loss.0.temprature",
        "stages.1.loss.1",
        "stages.1.loss.2",
        "stages.1.loss.3",
    ]
    assert len(problems(with_value("stages.1.loss", {"preset": "hinton", "alpha": 2, "temperature": 0}))) == 2


def test_numbers_may_be_written_as_text_or_with_an_exponent():
    made = run_from_dict(run(stage("a", teacher=None, train={"steps": 1e3, "learning_rate": "1e-4"})))
    assert (made.stages[0].train.steps, made.stages[0].train.learning_rate) == (1000, 1e-4)


_CLASSES = [kind for kind in vars(schema).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
_KEYS = sorted({field.name for kind in _CLASSES for field in dataclasses.fields(kind)})
_JUNK = st.sampled_from(
    [None, True, 3, -1, 0.5, "x", "a/b", "~nobody-here/x", "x" * 300, [], {}, [1], ["x"], {"x": 1}, [{}], [[1]], [None]]
)


def _paths(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_input_escapes_as_anything_but_clean_lines(data):
    raw = copy.deepcopy(run())
    raw["stages"][1]["loss"] = [{"type": "forward_kl"}]
    raw["stages"][1]["teacher"] = [{"stage": "teacher"}]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(_paths(raw))))
        holder = raw
        for part in path[:-1]:
            holder = holder[part]
        key = data.draw(st.sampled_from(_KEYS)) if isinstance(holder, dict) and data.draw(st.booleans()) else path[-1]
        holder[key] = copy.deepcopy(data.draw(_JUNK))
    for line in problems(raw):
        assert line
        assert "\n" not in line
        assert not any(noise in line for noise in ("tuple[", "literal[", "Input", "Term", "Config", "function"))
