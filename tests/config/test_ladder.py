"""Ladders and derived students: what they become, what others may call their rungs, and what contradicts them."""

from __future__ import annotations

import dataclasses

import pytest
from raw_runs import assert_one_problem, problems, run, stage

from jaxdistill.config import ResolvedTeacher, build_chain, describe, resolved_dict, run_from_dict
from jaxdistill.config.chain import Chain
from jaxdistill.config.model_schema import DeriveConfig, StudentConfig, WarmStartConfig

TEXT = {"task": "causal_lm", "train": {"path": "text.txt"}}
BIG = {"pretrained": "owner/big"}
LLAMA = {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


def ladder(name="student", /, *, to=1.5e9, stages=3, **keys):
    """A ladder stage without a student."""
    return {"name": name, "train": {"steps": 5}, "ladder": {"to": to, "stages": stages}} | keys


def text_run(*stages, **keys):
    return run(*stages, data=TEXT, **keys)


def chain(*stages, **keys) -> Chain:
    return build_chain(run_from_dict(text_run(*stages, **keys)))


def test_each_rung_teaches_the_next():
    start = {"layers": "uniform", "width": "importance"}
    made = chain(
        ladder(teacher=BIG, student={"warm_start": start}, loss={"preset": "hinton", "alpha": 0.5}, fused="on"),
        stage("after", student=LLAMA),
        stage("beside", student=LLAMA, teacher="student-1"),
    )
    assert [s.key for s in made.stages] == ["student-1", "student-2", "student", "after", "beside"]
    assert [s.teachers for s in made.stages] == [
        (ResolvedTeacher(pretrained="owner/big"),),
        (ResolvedTeacher(stage="student-1"),),
        (ResolvedTeacher(stage="student-2"),),
        (ResolvedTeacher(stage="student"),),
        (ResolvedTeacher(stage="student-1"),),
    ]
    rungs = made.stages[:3]
    assert [s.config.student for s in rungs] == [
        StudentConfig(derive=DeriveConfig(1.5e9, left), warm_start=WarmStartConfig("uniform", width="importance"))
        for left in (3, 2, 1)
    ]
    assert [s.warm_start_teacher for s in rungs] == [s.teachers[0] for s in rungs]
    same = [dataclasses.replace(s.config, name="", student=StudentConfig(), teacher=None) for s in rungs]
    assert same[0] == same[1] == same[2]
    assert [row["student"] for row in describe(made)[:3]] == [
        "derived, 1/3 of the way to 1.5B, layers uniform and width by importance from owner/big",
        "derived, 1/2 of the way to 1.5B, layers uniform and width by importance from student-1",
        "derived, 1.5B, layers uniform and width by importance from student-2",
    ]
    assert describe(made)[3]["student"] == "llama L2/H16"


def test_the_first_rung_learns_from_the_stage_before_and_the_last_is_repeated():
    made = chain(
        stage("first", teacher=BIG, student=LLAMA),
        ladder(stages=2, to=640.2, repeat={"seeds": [4, 5]}),
        stage("after", student=LLAMA),
    )
    assert [(s.key, s.teachers[0].stage) for s in made.stages[1:]] == [
        ("student-1", "first"),
        ("student/seed-4", "student-1"),
        ("student/seed-5", "student-1"),
        ("after", "student/seed-4"),
    ]
    assert describe(made)[1]["student"] == "derived, 1/2 of the way to 640"


def test_a_ladder_of_one_is_a_derived_student():
    derived = stage("student", teacher=BIG, student={"derive": {"parameters": 5e7}}, train={"steps": 5})
    assert chain(ladder(stages=1, to=5e7, teacher=BIG)).stages == chain(derived).stages


def test_the_resolved_run_keeps_the_ladder_as_written():
    made = run_from_dict(text_run(ladder(teacher=BIG)))
    plain = resolved_dict(made)
    assert plain["stages"][0]["ladder"] == {"to": 1.5e9, "stages": 3, "key_heads_multiple_of": 1}
    assert run_from_dict(plain) == dataclasses.replace(made, output_dir="runs/tiny")


def test_a_derived_control_without_a_teacher():
    start = {"layers": "first", "from_teacher": BIG}
    student = {"derive": {"parameters": 5e7}, "warm_start": start}
    assert not problems(text_run(stage("scratch", teacher=None, student=student), tokenizer=None))


SIZE = {"derive": {"parameters": 1e6}}
PROBLEMS = {
    "nobody to derive from": (
        text_run(stage("a", teacher=None, student=SIZE)),
        "stages.0.student.derive: the stage has no teacher whose sizes could be scaled down; name one",
    ),
    "a ladder from nobody": (
        text_run(stage("a", teacher=BIG, student=LLAMA), ladder("b", teacher=None)),
        "stages.1.ladder: the stage has no teacher whose sizes could be scaled down",
    ),
    "a ladder of encoders": (
        run(ladder(teacher={"asset": "minilm-l6"})),
        "stages.0.ladder: only decoders are derived, and data.task is classification",
    ),
    "a rung's name is taken": (
        text_run(ladder(teacher=BIG), stage("student-2", student=LLAMA)),
        "stages.0.ladder: its stages are called student-1, …, and 'student-2' is already the name of stages.1; choose",
    ),
    "two ladders of one name": (
        text_run(ladder("a", teacher=BIG), ladder("a-1", stages=1)),
        "stages.0.ladder: its stages are called a-1, …, and 'a-1' is already the name of stages.1",
    ),
    "sizes of a ladder's student": (
        text_run(ladder(teacher=BIG, student={"num_hidden_layers": 2, "warm_start": {"layers": "first"}})),
        "stages.0.student.num_hidden_layers: a ladder derives its students; remove it, or remove ladder",
    ),
    "a pretrained ladder": (
        text_run(ladder(teacher=BIG, student={"pretrained": "owner/small"})),
        "stages.0.student.pretrained: a ladder derives its students; remove it, or remove ladder",
    ),
    "no rungs": (text_run(ladder(teacher=BIG, stages=0)), "stages.0.ladder.stages: got 0; expected an integer greater"),
    "nobody's rung": (
        text_run(ladder(teacher=BIG), stage("b", student=LLAMA, teacher="student-3")),
        "stages.1.teacher: no stage is named 'student-3'; expected one of student-1, student-2, student, b",
    ),
    "a later stage's place": (
        text_run(ladder(teacher=BIG), stage("b", student=LLAMA, train={"steps": 1, "epochs": 1})),
        "stages.1.train: got both of epochs and steps",
    ),
    "a rung's training": (
        text_run(ladder(teacher=BIG, train={"steps": 5, "batch_size": 3, "accumulate": 2})),
        "stages.0.train.batch_size: 3 cannot be split into 2",
    ),
    "a ladder's teacher": (text_run(ladder(teacher="bg")), "stages.0.teacher: no stage is named 'bg'"),
    "neither student nor ladder": (
        text_run({"name": "a", "teacher": BIG, "train": {"steps": 1}}),
        "stages.0.student: m",
    ),
}


@pytest.mark.parametrize(("raw", "line"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_contradicts_a_ladder(raw, line):
    assert_one_problem(raw, line)


def test_a_ladder_of_the_whole_run_is_an_unknown_key_among_others():
    first = stage("a", teacher=BIG, student=LLAMA, train={})
    assert [found.split(":")[0] for found in problems(text_run(first, ladder={"to": 1e9, "stages": 2}))] == [
        "ladder",
        "stages.0.train",
    ]


# --- warm starts of decoders -----------------------------------------------------------------------------------------

WIDE = LLAMA | {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 64}
NARROW = WIDE | {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def warm(student, /, **start):
    teacher = stage("wide", teacher=BIG, student=WIDE)
    return text_run(teacher, stage("student", student=student | {"warm_start": start}))


SLICE = {"layers": "uniform", "width": "importance"}
WARM_PROBLEMS = {
    "nothing": ({}, {}, "stages.1.student.warm_start: copies nothing"),
    "other widths": (
        NARROW,
        {"layers": "first"},
        "stages.1.student.warm_start.layers: layers cannot be copied between different shapes: the student's "
        "hidden_size is 16, that of stage 'wide' 32; make them equal, or add width: importance to keep the most",
    ),
    "wider": (WIDE | {"intermediate_size": 80}, {"layers": "first"}, "make them equal, or leave layers out"),
    "wider slice": (
        WIDE | {"intermediate_size": 80},
        SLICE,
        "stages.1.student.warm_start.width: the student's intermediate_size is 80, that of stage 'wide' only 64; a",
    ),
    "other heads": (
        NARROW | {"head_dim": 8},
        SLICE,
        "stages.1.student.warm_start.width: the student's heads have 8 channels, those of stage 'wide' 4, and heads "
        "stay whole; write head_dim: 4",
    ),
    "larger groups": (
        NARROW | {"num_key_value_heads": 1},
        SLICE,
        "stages.1.student.warm_start.width: 4 of the student's query heads share a key head, of stage 'wide' only 2",
    ),
    "width alone": (NARROW, {"width": "importance"}, "stages.1.student.warm_start.width: says how copied layers are"),
    "svd": ({}, {"embeddings": "svd"}, "stages.1.student.warm_start.embeddings: svd is for encoders; write copy"),
    "embeddings of another width": (
        NARROW,
        {"embeddings": "copy"},
        "stages.1.student.warm_start.embeddings: embeddings cannot be copied: the student is 16 wide, stage 'wide' 32; "
        "write layers and width: importance to slice them",
    ),
    "deeper": ({"num_hidden_layers": 3}, {"layers": "last"}, "stages.1.student.warm_start.layers: the student has 3"),
}


@pytest.mark.parametrize(("fields", "start", "line"), WARM_PROBLEMS.values(), ids=WARM_PROBLEMS.keys())
def test_what_contradicts_a_decoders_warm_start(fields, start, line):
    assert line in problems(warm(WIDE | fields, **start))[0]
    assert len(problems(warm(WIDE | fields, **start))) == 1


@pytest.mark.parametrize("embeddings", [None, "copy"])
def test_slices_that_fit(embeddings):
    assert not problems(warm(NARROW, **SLICE, embeddings=embeddings))
    assert not problems(warm({"derive": {"parameters": 1e3}}, **SLICE, embeddings=embeddings))


def test_encoders_are_not_sliced():
    teacher, student = stage("a", teacher=None), stage("b")
    student["student"] |= {"warm_start": SLICE}
    assert_one_problem(run(teacher, student), "stages.1.student.warm_start.width: only decoders are narrowed by")
