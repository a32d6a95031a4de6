"""Values that are fine each by itself and cannot go together."""

from __future__ import annotations

import json

import pytest
from raw_runs import BERT, assert_one_problem, problems, run, stage

from jaxdistill.config import build_chain, load_run, run_from_dict
from jaxdistill.config.reading import dump_yaml
from jaxdistill.config.schema import Run
from jaxdistill.errors import ConfigError

HASH = BERT | {"architecture": "bert_hash"}
TEACHER = stage("teacher", teacher=None)


def student(**keys):
    return stage("student", student=BERT | keys)


def warm(source=None, /, teacher_student=None, **keys):
    """A run whose student starts from its teacher."""
    teacher = stage("teacher", teacher=None, student=teacher_student or dict(BERT))
    return run(teacher, stage("student", student=(source or BERT) | {"warm_start": keys}))


CASES = {
    "unknown teacher": (
        run(TEACHER, stage("student", teacher="techer")),
        "stages.1.teacher: no stage is named 'techer'; expected one of teacher, student; did you mean 'teacher'?; "
        "for a model directory or hub id write {pretrained: techer}",
    ),
    "unknown teacher stage": (
        run(TEACHER, stage("student", teacher={"stage": "x"})),
        "stages.1.teacher.stage: no stage is named 'x'; expected one of teacher, student",
    ),
    "unknown teacher in a list": (
        run(TEACHER, stage("student", teacher=["teacher", "x"])),
        "stages.1.teacher.1: no stage is named 'x'",
    ),
    "nobody to choose among": (
        run(TEACHER, stage("student", teacher_choice="confidence")),
        "stages.1.teacher_choice: got 'confidence', which chooses among several teachers",
    ),
    "a choice among weighted teachers": (
        run(
            TEACHER,
            stage("student", teacher=["teacher", {"asset": "minilm-l6", "weight": 2}], teacher_choice="confidence"),
        ),
        "stages.1.teacher_choice: got 'confidence', which takes one teacher whole at each example; remove the",
    ),
    "no teacher in a list": (run(TEACHER, stage("student", teacher=[])), "stages.1.teacher: got an empty list"),
    "two kinds of teacher": (
        run(TEACHER, stage("student", teacher={"stage": "teacher", "asset": "minilm-l6"})),
        "stages.1.teacher: got stage and asset; expected exactly one of stage, pretrained, asset",
    ),
    "revision of a stage": (
        run(TEACHER, stage("student", teacher={"stage": "teacher", "revision": "main"})),
        "stages.1.teacher.revision: only a pretrained hub model has revisions",
    ),
    "first stage without a word on its teacher": (
        run(stage("a"), stage("b")),
        "stages.0.teacher: left out (the previous stage), but this is the first stage; write null",
    ),
    "its own teacher": (
        run(TEACHER, stage("student", teacher="student")),
        "stages.1.teacher: stages wait for each other: student needs student; break the circle",
    ),
    "a cycle": (
        run(stage("a", teacher="c"), stage("b", teacher="a"), stage("c", teacher="b"), stage("d", teacher="a")),
        "stages.0.teacher: stages wait for each other: a needs c needs b needs a; break the circle",
    ),
    "a cycle through a warm start": (
        run(
            stage("a", teacher=None, student=BERT | {"warm_start": {"layers": "first", "from_teacher": "b"}}),
            stage("b", teacher="a"),
        ),
        "stages.0.student.warm_start.from_teacher: stages wait for each other: a needs b needs a",
    ),
    "duplicate names": (
        run(TEACHER, stage("teacher", teacher=None)),
        "stages.1.name: 'teacher' is already the name of stages.0",
    ),
    "reserved name": (run(TEACHER, stage("previous")), "stages.1.name: 'previous' means the stage before"),
    "heads": (
        run(TEACHER, student(hidden_size=9)),
        "stages.1.student.hidden_size: 9 is not divisible by 2 attention heads; expected a multiple",
    ),
    "default heads": (
        run(TEACHER, stage("student", student={"architecture": "bert", "hidden_size": 128})),
        "stages.1.student.hidden_size: 128 is not divisible by 12 attention heads (defaults: 768 and 12)",
    ),
    "no origin": (
        run(TEACHER, stage("student", student={"hidden_size": 8})),
        "stages.1.student: got none of them; expected exactly one of pretrained, asset, architecture",
    ),
    "two origins": (
        run(TEACHER, stage("student", student={"asset": "minilm-l6", "architecture": "bert"})),
        "stages.1.student: got asset and architecture; expected exactly one",
    ),
    "shape of a pretrained student": (
        run(TEACHER, stage("student", student={"pretrained": "a/b", "hidden_size": 8})),
        "stages.1.student.hidden_size: a pretrained student's hidden_size is its own; remove it",
    ),
    "warm start of a pretrained student": (
        run(TEACHER, stage("student", student={"pretrained": "a/b", "warm_start": {"layers": "first"}})),
        "stages.1.student.warm_start: a pretrained student starts from its own weights",
    ),
    "revision of a fresh student": (
        run(TEACHER, student(revision="main")),
        "stages.1.student.revision: only a pretrained hub model has revisions",
    ),
    "projections of a BERT": (
        run(TEACHER, student(projections=5)),
        "stages.1.student.projections: only bert_hash has projections, this is bert",
    ),
    "token types of a DistilBERT": (
        run(TEACHER, student(architecture="distilbert", type_vocab_size=2)),
        "stages.1.student.type_vocab_size: distilbert has no token types",
    ),
    "layer norm of a DistilBERT": (
        run(TEACHER, student(architecture="distilbert", layer_norm_eps=1e-5)),
        "stages.1.student.layer_norm_eps: distilbert has a fixed layer_norm_eps of 1e-12",
    ),
    "positions": (
        run(TEACHER, student(max_position_embeddings=32), data={"train": {"asset": "sentiment"}, "max_length": 64}),
        "stages.1.student.max_position_embeddings: 32 positions; expected at least data.max_length, which is 64",
    ),
    "default positions": (
        run(stage("a", teacher=None), data={"train": {"asset": "sentiment"}, "max_length": 513}),
        "stages.0.student.max_position_embeddings: 512 positions; expected at least data.max_length, which is 513",
    ),
    "positions of a stage's own data": (
        run(TEACHER, student(max_position_embeddings=32) | {"data": {"max_length": 64}}),
        "stages.1.student.max_position_embeddings: 32 positions; expected at least stage data.max_length",
    ),
    "positions of a teacher for a stage's own data": (
        run(
            stage("teacher", teacher=None, student=BERT | {"max_position_embeddings": 32}),
            stage("student", data={"max_length": 64}),
        ),
        "stages.1.teacher: teacher stage 'teacher' has 32 positions; expected at least stage data.max_length, 64",
    ),
    "warm start without a teacher": (
        run(stage("a", teacher=None, student=BERT | {"warm_start": {"layers": "first"}})),
        "stages.0.student.warm_start: the stage has no teacher to copy from; name one in warm_start.from_teacher",
    ),
    "warm start of nothing": (
        warm(),
        "stages.1.student.warm_start: copies nothing; expected layers, embeddings or both",
    ),
    "too few layers named": (
        warm(layers=[0]),
        "stages.1.student.warm_start.layers: got 1 teacher layers; expected one for each of the student's 2",
    ),
    "a layer the teacher lacks": (
        warm(layers=[0, 2]),
        "stages.1.student.warm_start.layers: got layer 2; expected 0 to 1, since stage 'teacher' has 2 layers",
    ),
    "a student deeper than its teacher": (
        warm(BERT | {"num_hidden_layers": 3}, layers="uniform"),
        "stages.1.student.warm_start.layers: the student has 3 layers, stage 'teacher' only 2",
    ),
    "layers of another width": (
        warm(BERT | {"hidden_size": 4}, layers="uniform"),
        "stages.1.student.warm_start.layers: layers cannot be copied between different shapes: the student's "
        "hidden_size is 4, that of stage 'teacher' 8; make them equal, or leave layers out",
    ),
    "layers of another feed-forward width": (
        warm(BERT | {"intermediate_size": 8}, layers="uniform"),
        "the student's intermediate_size is 8, that of stage 'teacher' 16",
    ),
    "embeddings of another width": (
        warm(BERT | {"hidden_size": 4}, embeddings="copy"),
        "stages.1.student.warm_start.embeddings: embeddings cannot be copied: the student is 4 wide, stage 'teacher' "
        "8; write embeddings: svd to project them",
    ),
    "embeddings into a factorised table": (
        warm(HASH, embeddings="copy"),
        "stages.1.student.warm_start.embeddings: a factorised (bert_hash) table and a full one",
    ),
    "distillation without a teacher": (
        run(stage("a", teacher=None, loss=[{"type": "cross_entropy"}, {"type": "logit_mse"}])),
        "stages.0.loss.1.type: logit_mse needs a teacher, and the stage has none (teacher: null); use cross_entropy",
    ),
    "preset without a teacher": (
        run(stage("a", teacher=None, loss={"preset": "txtai"})),
        "stages.0.loss.preset: preset 'txtai' needs a teacher",
    ),
    "no weight": (
        run(TEACHER, stage("b", loss=[{"type": "forward_kl", "weight": 0}, {"type": "cross_entropy", "weight": 0}])),
        "stages.1.loss: all weights are 0",
    ),
    "no terms": (run(TEACHER, stage("b", loss=[])), "stages.1.loss: got an empty list; expected terms"),
    "cache without a teacher": (
        run(stage("a", teacher=None, teacher_cache="memory")),
        "stages.0.teacher_cache: got 'memory', but the stage has no teacher",
    ),
    "no length": (
        run(stage("a", teacher=None, train={})),
        "stages.0.train: got neither of epochs and steps; expected exactly one",
    ),
    "two lengths": (
        run(stage("a", teacher=None, train={"epochs": 1, "steps": 2})),
        "stages.0.train: got both of epochs and steps; expected exactly one",
    ),
    "unequal micro-batches": (
        run(stage("a", teacher=None, train={"epochs": 1, "batch_size": 10, "accumulate": 4})),
        "stages.0.train.batch_size: 10 cannot be split into 4 equal micro-batches",
    ),
    "warm-up beyond the end": (
        run(stage("a", teacher=None, train={"steps": 10, "warmup": 11})),
        "stages.0.train.warmup: got 11 steps of warm-up; expected at most train.steps, which is 10",
    ),
    "warm-up of half a step": (
        run(stage("a", teacher=None, train={"steps": 10, "warmup": 1.5})),
        "stages.0.train.warmup: got 1.5; expected a share of the steps (below 1) or a whole number",
    ),
    "seeds": (run(TEACHER, stage("b", repeat={"seeds": [1, 2, 1]})), "stages.1.repeat.seeds: seed 1 is given twice"),
    "best by agreement without a teacher": (
        run(stage("a", teacher=None, checkpoint={"best": "agreement"})),
        "stages.0.checkpoint.best: 'agreement' compares with a teacher, and the stage has none",
    ),
    "run name": (
        run(name="a/b"),
        "name: got 'a/b'; expected a directory name, without separators (output_dir says where)",
    ),
    "run name above": (run(name=".."), "name: got '..'; expected a directory name"),
    "unknown home": (
        run(output_dir="~nobody-here/x"),
        "output_dir: got '~nobody-here/x', which names a home directory",
    ),
    "no devices": (run(parallel={"data": 0}), "parallel.data: got 0; expected a number of devices"),
    "none to share with": (run(parallel={"tensor": 0}), "parallel.tensor: got 0; expected a number of devices"),
    "no vocabulary": (run(tokenizer=None), "tokenizer: missing, and no given teacher or pretrained student brings one"),
}


@pytest.mark.parametrize("name", CASES)
def test_contradiction(name):
    assert_one_problem(*CASES[name])


@pytest.mark.parametrize(
    "raw",
    [
        warm(layers=[1, 1]),
        warm(HASH, layers="uniform", embeddings="svd"),
        warm(HASH, teacher_student=HASH, embeddings="copy"),
        warm(BERT | {"architecture": "distilbert"}, layers="last", embeddings="copy"),
        run(stage("a", teacher=None), teacher_cache="memory"),
        run(stage("a", teacher={"asset": "minilm-l6"}), tokenizer=None),
        run(stage("a", teacher="owner/model"), tokenizer=None),
        run(stage("a", teacher=None, student=BERT | {"warm_start": {"embeddings": "svd", "from_teacher": "x/y"}})),
        run(stage("late", teacher="early"), stage("early", teacher=None)),
        run(TEACHER, stage("b", loss={"preset": "hinton", "alpha": 0})),
        run(stage("a", teacher=None, train={"steps": 10, "warmup": 10})),
        run(stage("a", teacher=None, data={"train": {"asset": "x"}}), data={"label_names": ["no", "yes"]}),
    ],
)
def test_unusual_but_consistent(raw):
    assert problems(raw) == []


def test_two_cycles_are_both_named():
    found = problems(
        run(stage("a", teacher="b"), stage("b", teacher="a"), stage("c", teacher=["a", "d"]), stage("d", teacher="c"))
    )
    assert [line.split(": ")[-1] for line in found] == [
        "a needs b needs a; break the circle",
        "c needs d needs c; break the circle",
    ]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a data file and two model directories, one of them a level too high."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "train.txt").touch()
    for name in ("model", "stage/student"):
        (tmp_path / name).mkdir(parents=True)
        config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 4, "max_position_embeddings": 64}
        config["vocab_size"] = 30
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def load(here, raw) -> Run | list[str]:
    (here / "run.yaml").write_text(dump_yaml(raw))
    try:
        return load_run("run.yaml")
    except ConfigError as error:
        return list(error.problems)


def test_files_that_are_there(here):
    raw = run(
        stage("a", teacher="model"),
        stage("b", teacher={"pretrained": "./model"}, student={"pretrained": "owner/name"}),
        stage("c", teacher={"pretrained": str(here / "model")}, data={"test": {"path": "train.csv"}}),
        data={"train": {"path": "train.csv"}},
        tokenizer="./model",
    )
    made = load(here, raw)
    assert isinstance(made, Run)
    assert [stage.teachers[0].pretrained for stage in build_chain(made).stages] == [
        "model",
        "./model",
        str(here / "model"),
    ]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            run(data={"train": {"path": "trian.csv"}}),
            "data.train.path: trian.csv: no such file; did you mean 'train.csv'?",
        ),
        (run(data={"train": {"path": "deep/x.csv"}}), "data.train.path: deep/x.csv: no such file in "),
        (run(data={"train": {"path": "model"}}), "data.train.path: model is a directory; expected a file of rows"),
        (run(data={"train": {"path": "x" * 300}}), "no such file"),
        (
            run(TEACHER, stage("b", data={"test": {"path": "/none/x.csv"}})),
            "stages.1.data.test.path: /none/x.csv: no such file",
        ),
        (
            run(TEACHER, stage("b", student={"pretrained": "./modle"})),
            "stages.1.student.pretrained: ./modle: no such directory; did you mean 'model'?; expected a local",
        ),
        (
            run(TEACHER, stage("b", teacher={"pretrained": "runs/x/stages/teacher/student"})),
            "stages.1.teacher.pretrained: runs/x/stages/teacher/student: no such directory",
        ),
        (run(TEACHER, stage("b", teacher=["teacher", "./none"])), "stages.1.teacher.1: ./none: no such directory"),
        (
            run(TEACHER, stage("b", student=BERT | {"warm_start": {"layers": "first", "from_teacher": "./none"}})),
            "stages.1.student.warm_start.from_teacher: ./none: no such directory",
        ),
        (
            run(TEACHER, stage("b", teacher="./train.csv")),
            "stages.1.teacher: ./train.csv is a file; expected a model dir",
        ),
        (
            run(TEACHER, stage("b", teacher={"pretrained": "./stage"})),
            "stages.1.teacher.pretrained: ./stage has no config.json; expected a Hugging Face model directory; "
            "did you mean 'stage/student'?",
        ),
        (run(tokenizer="./none"), "tokenizer: ./none: no such directory"),
        (run(output_dir="train.csv"), "output_dir: got 'train.csv', which is a file; expected a directory"),
        (run(output_dir="train.csv/x/y"), "output_dir: got 'train.csv/x/y', which lies below train.csv, a file"),
        (run(data={"train": {"path": "train.txt"}}), "data.train.path: train.txt: not a format we read; expected one"),
        # named assets
        (
            run(data={"train": {"asset": "sentimnt", "split": "train"}}),
            "data.train.asset: 'sentimnt' is no asset; expected one of sentiment; did you mean 'sentiment'?",
        ),
        (run(data={"train": {"asset": "minilm-l6"}}), "data.train.asset: 'minilm-l6' is no data set; expected one of"),
        (run(data={"train": {"asset": "sentiment"}}), "data.train.split: missing; expected one of train, validation"),
        (
            run(TEACHER, stage("b", data={"test": {"asset": "sentiment", "split": "tst"}})),
            "stages.1.data.test.split: got 'tst'; expected one of train, validation, test; did you mean 'test'?",
        ),
        (
            run(TEACHER, stage("b", student={"asset": "sentiment"})),
            "stages.1.student.asset: 'sentiment' is no model; expected one of minilm-l6",
        ),
        (
            run(TEACHER, stage("b", teacher=["teacher", {"asset": "minilm"}])),
            "stages.1.teacher.1.asset: 'minilm' is no asset; expected one of minilm-l6; did you mean 'minilm-l6'?",
        ),
        # what a local config.json tells
        (
            run(stage("a", teacher="model"), data={"train": {"path": "train.csv"}, "max_length": 65}),
            "stages.0.teacher: teacher model has 64 positions; expected at least data.max_length, 65",
        ),
        (
            run(stage("a", teacher="model", student=BERT | {"warm_start": {"embeddings": "copy"}})),
            "stages.0.student.warm_start.embeddings: embeddings cannot be copied: the student is 8 wide, model 16",
        ),
        (
            run(stage("a", teacher="model", student=BERT | {"vocab_size": 9, "warm_start": {"embeddings": "svd"}})),
            "stages.0.student.warm_start.embeddings: the student has 9 tokens, model 30; embeddings can only be taken",
        ),
        (
            run(stage("a", teacher="model", student=BERT | {"hidden_size": 32, "warm_start": {"embeddings": "svd"}})),
            "warm_start.embeddings: the student's word table is 32 wide, model only 16; svd can only narrow",
        ),
        (
            run(
                stage("a", teacher=None, student={"pretrained": "model"}),
                data={"train": {"path": "train.csv"}, "max_length": 65},
            ),
            "stages.0.student.pretrained: 64 positions; expected at least data.max_length, which is 65",
        ),
    ],
)
def test_files_that_are_not(here, raw, line):
    (found,) = load(here, raw)
    assert line in found


def test_a_run_from_plain_values_does_not_look_for_files():
    assert run_from_dict(run(data={"train": {"path": "/none/x.csv"}})).data.train is not None
