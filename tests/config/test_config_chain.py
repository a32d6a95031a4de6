"""From a run to its chain: order, teachers, repeats, losses, data and the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_runs import BERT, run, stage

from jaxdistill.config import (
    ResolvedTeacher,
    build_chain,
    describe,
    differences,
    fingerprint,
    resolved_dict,
    run_from_dict,
)
from jaxdistill.config.chain import Chain
from jaxdistill.config.loss_schema import CrossEntropyTerm, DivergenceTerm
from jaxdistill.config.schema import RepeatConfig
from jaxdistill.config.teachers import run_order
from jaxdistill.errors import ConfigError


def chain(*stages, **keys) -> Chain:
    return build_chain(run_from_dict(run(*stages, **keys)))


def test_stages_run_as_written_except_after_what_they_need():
    made = chain(
        stage("last", teacher="mid"),
        stage("alone", teacher=None),
        stage("mid", teacher="first"),
        stage("first", teacher=None),
        stage("copy", teacher=None, student=BERT | {"warm_start": {"layers": "first", "from_teacher": "last"}}),
    )
    assert [s.key for s in made.stages] == ["alone", "first", "mid", "last", "copy"]
    assert made.stage("copy").warm_start_teacher == ResolvedTeacher(stage="last")
    assert made.stage("copy").teachers == ()


@settings(deadline=None)
@given(st.data())
def test_any_acyclic_graph_is_ordered_and_a_written_order_that_works_is_kept(data):
    count = data.draw(st.integers(1, 8))
    ranks = data.draw(st.permutations(range(count)))
    names = [f"s{i}" for i in range(count)]
    needs = [[names[j] for j in range(count) if ranks[j] < ranks[i] and data.draw(st.booleans())] for i in range(count)]
    order, cycles = run_order(names, needs)
    assert cycles == []
    assert sorted(order) == list(range(count))
    for position, index in enumerate(order):
        assert {names[i] for i in order[:position]} >= set(needs[index])
    renamed = [names[i] for i in order]
    assert run_order(renamed, [needs[i] for i in order])[0] == list(range(count))


def test_teachers_in_every_way_of_writing():
    made = chain(
        stage("a", teacher={"pretrained": "owner/big", "revision": "v2"}),
        stage("b"),
        stage("c", teacher="a"),
        stage("d", teacher=["previous", {"stage": "a", "weight": 3}, {"asset": "minilm-l6"}, "owner/big"]),
        stage("e", teacher={"asset": "minilm-l6"}),
    )
    teachers = {s.key: s.teachers for s in made.stages}
    big = ResolvedTeacher(pretrained="owner/big", revision="v2")
    assert teachers["a"] == (big,)
    assert teachers["b"] == teachers["c"] == (ResolvedTeacher(stage="a"),)
    assert teachers["d"] == (
        ResolvedTeacher(stage="c"),
        ResolvedTeacher(stage="a", weight=3.0),
        ResolvedTeacher(asset="minilm-l6"),
        ResolvedTeacher(pretrained="owner/big"),
    )
    # Each given model once, in the order the run first learns from it; another revision is another model.
    given_teachers = [(g.pretrained, g.asset, g.revision) for g in made.given]
    assert given_teachers == [("owner/big", None, "v2"), (None, "minilm-l6", None), ("owner/big", None, None)]


def test_a_model_only_copied_from_is_not_a_given_teacher():
    made = chain(
        stage(
            "a",
            teacher=None,
            student=BERT | {"warm_start": {"embeddings": "svd", "from_teacher": {"asset": "minilm-l6"}}},
        )
    )
    assert made.given == ()
    assert made.stages[0].warm_start_teacher == ResolvedTeacher(asset="minilm-l6")


def test_repeats_become_stages_and_hand_on_the_first_seed():
    made = chain(
        stage("teacher", teacher=None),
        stage("student", repeat={"seeds": [3, 1]}),
        stage("next"),
        seed=7,
        output_dir="out",
    )
    assert [(s.key, s.name, s.seed, s.repeats) for s in made.stages] == [
        ("teacher", "teacher", 7, False),
        ("student/seed-3", "student", 3, True),
        ("student/seed-1", "student", 1, True),
        ("next", "next", 7, False),
    ]
    assert made.stage("student/seed-1").directory == Path("out/stages/student/seed-1")
    assert made.stage("next").teachers == (ResolvedTeacher(stage="student/seed-3"),)
    assert chain().directory == Path("runs/tiny")


def test_losses():
    made = chain(
        stage("labels", teacher=None),
        stage("default"),
        stage("hinton", loss={"preset": "hinton", "temperature": 4, "alpha": 0.9}),
        stage("txtai", loss={"preset": "txtai"}),
        stage("mixed", loss={"preset": "txtai", "alpha": 0.5}),
        stage(
            "own", loss=[{"type": "jensen_shannon", "beta": 0.1, "temperature": 2}, {"type": "logit_mse", "weight": 0}]
        ),
    )
    terms = {s.key: s.terms for s in made.stages}

    def kl(weight, temperature):
        return DivergenceTerm(type="forward_kl", weight=weight, temperature=temperature)

    def ce(weight):
        return CrossEntropyTerm(type="cross_entropy", weight=weight)

    assert terms["labels"] == (ce(1.0),)
    assert terms["default"] == (kl(0.7, 2.0), ce(0.3))
    assert terms["hinton"] == (kl(0.9, 4.0), ce(0.1))
    assert terms["txtai"] == (kl(1.0, 1.0),)
    assert terms["mixed"] == (kl(0.5, 1.0), ce(0.5))
    assert [row["loss"] for row in describe(made)] == [
        "CE",
        "0.7·T²·KL(T=2) + 0.3·CE",
        "0.9·T²·KL(T=4) + 0.1·CE",
        "KL(T=1)",
        "0.5·KL(T=1) + 0.5·CE",
        "T²·JSD(β=0.1, T=2) + 0·MSE(logits)",
    ]


def test_stage_data_is_the_runs_with_the_stages_keys_written_over():
    data = {
        "train": {"hub": "glue", "config": "sst2", "split": "train"},
        "validation": {"path": "dev.csv"},
        "text": ["sentence"],
        "max_length": 32,
    }
    own = {"train": {"path": "more.csv"}, "validation": None, "max_length": 16}
    made = chain(
        stage("a", teacher=None), stage("b", data=own), stage("c", teacher={"asset": "x"}, data=own), data=data
    )
    first, second, third = (s.data for s in made.stages)
    assert first.train is not None
    assert (first.train.hub, first.train.split, first.max_length) == ("glue", "train", 32)
    assert second.train is not None
    assert (second.train.path, second.train.hub, second.train.split) == ("more.csv", None, None)
    assert (second.validation, second.text, second.max_length) == (None, ("sentence",), 16)
    # A given teacher is evaluated on the data of the stage that learns from it.
    assert made.given[0].data == third


def test_the_teacher_cache_is_the_runs_unless_a_stage_says_otherwise():
    made = chain(stage("a", teacher=None), stage("b"), stage("c", teacher_cache="off"), teacher_cache="memory")
    assert [s.teacher_cache for s in made.stages] == ["off", "memory", "off"]


def test_table_rows():
    made = chain(
        stage("teacher", teacher=None, student={"asset": "minilm-l6"}),
        stage("small", student=BERT | {"warm_start": {"layers": [0, 1], "embeddings": "svd"}}, train={"steps": 5}),
        stage(
            "hash",
            student=BERT | {"architecture": "bert_hash"},
            teacher=["small", {"stage": "teacher", "weight": 2}],
            train={"epochs": 0.5, "batch_size": 8, "learning_rate": 3e-4},
        ),
    )
    assert describe(made)[1:] == [
        {
            "key": "small",
            "teachers": "teacher",
            "student": "bert L2/H8, layers [0, 1] and embeddings svd from teacher",
            "loss": "0.7·T²·KL(T=2) + 0.3·CE",
            "length": "5 steps",
            "batch": "32",
            "learning_rate": "0.0001",
        },
        {
            "key": "hash",
            "teachers": "1·small + 2·teacher",
            "student": "bert_hash L2/H8/P5",
            "loss": "0.7·T²·KL(T=2) + 0.3·CE",
            "length": "0.5 epochs",
            "batch": "8",
            "learning_rate": "0.0003",
        },
    ]


def test_a_run_built_in_code_is_checked_too():
    made = run_from_dict(run())
    broken = dataclasses.replace(made.stages[1], teacher="nobody", repeat=RepeatConfig((1, 1)))
    with pytest.raises(ConfigError) as caught:
        build_chain(dataclasses.replace(made, stages=(made.stages[0], broken)))
    assert len(caught.value.problems) == 2


# --- written out and compared ----------------------------------------------------------------------------------------


def test_the_resolved_run_is_complete_plain_and_reads_back():
    raw = run(
        stage("teacher", teacher=None, data={"max_length": 12}),
        stage("student", teacher=["teacher", {"asset": "x"}], loss=[{"type": "forward_kl"}], repeat={"seeds": [0]}),
        stage("other", loss={"preset": "hinton"}, student=BERT | {"warm_start": {"layers": [0, 1]}}),
    )
    made = run_from_dict(raw)
    plain = resolved_dict(made)
    assert plain["output_dir"] == "runs/tiny"
    assert plain["stages"][1]["train"]["b2"] == 0.999
    assert run_from_dict(plain) == dataclasses.replace(made, output_dir="runs/tiny")
    assert resolved_dict(run_from_dict(plain)) == plain


def _resolved(*changes):
    raw = run()
    for path, value in changes:
        *parents, last = path
        here = raw
        for part in parents:
            here = here[part] if isinstance(here, list) else here.setdefault(part, {})
        here[last] = value
    return resolved_dict(run_from_dict(raw))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "other"),
        (("output_dir",), "/elsewhere"),
        (("parallel", "strategy"), "pmap"),
        (("parallel", "data"), 4),
        (("logging", "tensorboard"), False),
        (("stages", 1, "train", "accumulate"), 2),
        (("stages", 1, "train", "log_every"), 1),
        (("stages", 1, "checkpoint", "every"), 5),
        (("stages", 1, "checkpoint", "keep"), 5),
        (("stages", 1, "evaluate", "batch_size"), 5),
    ],
)
def test_how_a_run_is_carried_out_may_change(path, value):
    assert differences(_resolved(), _resolved((path, value))) == []


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("seed",), 1, "seed: 0 → 1"),
        (("data", "max_length"), 9, "data.max_length: null → 9"),
        (("data", "train"), {"path": "x.csv"}, 'data.train.path: null → "x.csv"'),
        (("stages", 1, "train", "epochs"), 2, "stages.student.train.epochs: 1.0 → 2.0"),
        (("stages", 1, "checkpoint", "best"), "loss", 'stages.student.checkpoint.best: null → "loss"'),
        (("stages", 1, "evaluate", "every"), 3, "stages.student.evaluate.every: null → 3"),
        (("stages", 1, "teacher"), "teacher", 'stages.student.teacher: "previous" → "teacher"'),
        (("stages", 1, "repeat"), {"seeds": [1]}, 'stages.student.repeat: null → {"seeds": [1]}'),
        (("precision", "compute"), "bfloat16", 'precision.compute: "float32" → "bfloat16"'),
    ],
)
def test_what_a_run_computes_may_not(path, value, line):
    assert line in differences(_resolved(), _resolved((path, value)))


def test_differences_in_lists_and_stages():
    old = _resolved((("stages", 1, "loss"), [{"type": "forward_kl"}, {"type": "cross_entropy"}]))
    new = _resolved((("stages", 1, "loss"), [{"type": "forward_kl", "temperature": 2}, {"type": "cross_entropy"}]))
    assert differences(old, new) == ["stages.student.loss.0.temperature: 1.0 → 2.0"]
    more = resolved_dict(
        run_from_dict(run(stage("teacher", teacher=None), stage("new"), stage("other", teacher="teacher")))
    )
    assert differences(_resolved(), more) == [
        "stages.student: there → removed",
        "stages.new: not there → added",
        "stages.other: not there → added",
    ]
    swapped = _resolved()
    swapped["stages"].reverse()
    assert differences(_resolved(), swapped) == ["stages: order teacher, student → student, teacher"]


def test_fingerprints_depend_on_values_alone():
    made = run_from_dict(run())
    assert fingerprint(made) == fingerprint(run_from_dict(run()))
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint(made) != fingerprint(dataclasses.replace(made, seed=1))
    # SHA-256 of the four bytes `null`, by coreutils' sha256sum.
    assert fingerprint(None) == "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"
