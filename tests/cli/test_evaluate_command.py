"""`jaxdistill evaluate`: metrics on a file, on a configuration's data and on that of a stage's own run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score, log_loss
from tiny_classifier import WORDS, write_classifier

from jaxdistill.inference import Classifier

TEXTS = [
    "good film",
    "bad film",
    "the plot was awful",
    "very good",
    "dull , dull , dull",
    "fine",
    "great plot !",
    "not bad",
]
NAMES = ["positive", "negative", "negative", "positive", "negative", "positive", "positive", "positive"]


def write_csv(path: Path, labels: list, texts: list[str] = TEXTS, header: str = "text,label") -> Path:
    lines = [f'"{text}",{label}' for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "dev.csv", NAMES)


@pytest.fixture
def run_directory(tmp_path: Path, classifier: Path, labelled: Path) -> Path:
    """As a run leaves it: the stage `student` with two seeds, whose data is `labelled`."""
    run = tmp_path / "runs" / "r"
    entries = []
    for seed in (3, 1):
        stage = run / "stages" / "student" / f"seed-{seed}"
        write_classifier(stage / "student", seed=seed)
        entries.append({"name": "student", "key": f"student/seed-{seed}", "seed": seed, "teacher": None})
    (run / "stages" / "next").mkdir()
    (run / "summary.json").write_text(json.dumps({"name": "r", "stages": entries}))
    stage = {"train": {"steps": 1}, "teacher": None, "student": {"pretrained": str(classifier)}}
    config = {
        "name": "r",
        "output_dir": str(run),
        "data": {"train": {"path": str(labelled)}, "validation": {"path": str(labelled)}, "max_length": 16},
        "stages": [
            {"name": "student", "repeat": {"seeds": [3, 1]}, **stage},
            {"name": "next", **stage},
        ],
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_metrics_are_those_of_the_predictions(jaxdistill, classifier, labelled):
    result = jaxdistill("evaluate", classifier, "--data", labelled, "--json")
    assert result.status == 0, result.err
    measured = json.loads(result.out)
    predictions = Classifier(classifier).predict(TEXTS)
    truth = [int(name == "positive") for name in NAMES]
    guess = [int(prediction.label == "positive") for prediction in predictions]
    probability = [prediction.probabilities["positive"] for prediction in predictions]
    assert measured["examples"] == len(TEXTS)
    assert measured["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert measured["f1"] == pytest.approx(f1_score(truth, guess))
    assert measured["loss"] == pytest.approx(log_loss(truth, probability), rel=1e-4)


def test_a_teacher_adds_closeness(jaxdistill, classifier, labelled, tmp_path):
    """The teacher's classes stand in another order; they are compared by name."""
    teacher = write_classifier(tmp_path / "teacher", seed=1, labels=("POSITIVE", "NEGATIVE"))
    measured = json.loads(jaxdistill("evaluate", classifier, "--data", labelled, "--teacher", teacher, "--json").out)
    student_model, teacher_model = Classifier(classifier), Classifier(teacher)
    p = np.asarray([list(found.probabilities.values())[::-1] for found in teacher_model.predict(TEXTS)])
    q = np.asarray([list(found.probabilities.values()) for found in student_model.predict(TEXTS)])
    assert measured["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert measured["kl"] == pytest.approx((p * (np.log(p) - np.log(q))).sum(1).mean(), rel=1e-4)
    assert measured["retention"] == pytest.approx(measured["accuracy"] / measured["teacher_accuracy"])


def test_a_model_is_its_own_perfect_teacher(jaxdistill, classifier, labelled):
    measured = json.loads(jaxdistill("evaluate", classifier, "--data", labelled, "--teacher", classifier, "--json").out)
    assert measured["agreement"] == 1.0
    assert measured["kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_table_names_what_was_measured(jaxdistill, classifier, labelled):
    out = jaxdistill("evaluate", classifier, "--data", labelled, "--teacher", classifier).out
    text = " ".join(out.split())  # a long path wraps
    for word in ("8 examples", "accuracy", "retention", "100.0%", "KL", "parameters"):
        assert word in text


def test_numbers_are_classes_and_names_are_never_guessed(jaxdistill, classifier, tmp_path):
    numbers = write_csv(tmp_path / "numbers.csv", [int(name == "positive") for name in NAMES])
    names = write_csv(tmp_path / "names.csv", NAMES)
    other = write_csv(tmp_path / "other.csv", ["good" if name == "positive" else "bad" for name in NAMES])
    unnamed = write_classifier(tmp_path / "unnamed", labels=None)

    def accuracy(*arguments) -> float:
        return json.loads(jaxdistill("evaluate", *arguments, "--json").out)["accuracy"]

    expected = accuracy(classifier, "--data", names)
    assert accuracy(classifier, "--data", numbers) == expected
    assert accuracy(unnamed, "--data", numbers) == expected
    assert accuracy(classifier, "--data", other, "--label-names", "bad,good") == expected
    assert accuracy(unnamed, "--data", names, "--label-names", "negative,positive") == expected
    refused = jaxdistill("evaluate", unnamed, "--data", names)
    assert refused.status == 2
    assert "does not name its 2 classes" in refused.err
    refused = jaxdistill("evaluate", classifier, "--data", other)
    assert refused.status == 2
    assert "labels are bad, good, those of" in refused.err
    assert jaxdistill("evaluate", classifier, "--data", names, "--label-names", "a,b,c").status == 2


def test_columns_and_bad_rows(jaxdistill, classifier, tmp_path):
    data = write_csv(tmp_path / "d.csv", [*NAMES[:7], ""], header="review,stars")
    arguments = ("evaluate", classifier, "--data", data, "--text", "review", "--label", "stars", "--json")
    refused = jaxdistill(*arguments)
    assert refused.status == 2
    assert "line 9: missing label" in refused.err
    measured = json.loads(jaxdistill(*arguments, "--skip-bad-rows").out)
    assert (measured["examples"], measured["skipped_rows"]) == (7, 1)
    assert "no column 'text'" in jaxdistill("evaluate", classifier, "--data", data).err


def test_a_stage_is_evaluated_on_its_own_runs_data(jaxdistill, run_directory, labelled):
    by_name = json.loads(jaxdistill("evaluate", f"{run_directory}:student", "--json").out)
    assert by_name["split"] == "validation"
    on_file = json.loads(jaxdistill("evaluate", f"{run_directory}:student", "--data", labelled, "--json").out)
    assert by_name["loss"] == on_file["loss"]
    by_path = json.loads(jaxdistill("evaluate", run_directory / "stages" / "student", "--json").out)
    first = json.loads(jaxdistill("evaluate", f"{run_directory}:student/seed-3", "--json").out)
    second = json.loads(jaxdistill("evaluate", run_directory / "stages" / "student" / "seed-1", "--json").out)
    assert by_name["loss"] == by_path["loss"] == first["loss"] != second["loss"]


def test_a_configurations_split_is_read(jaxdistill, classifier, run_directory):
    config = run_directory / "config.yaml"
    measured = json.loads(jaxdistill("evaluate", classifier, "--config", config, "--json").out)
    assert (measured["split"], measured["examples"]) == ("validation", 8)
    assert "data.test: the configuration has none" in (
        jaxdistill("evaluate", classifier, "--config", config, "--split", "test").err
    )


def test_what_a_validation_set_left_out_means_is_what_a_run_holds_out(jaxdistill, classifier, tmp_path):
    from jaxdistill import data
    from jaxdistill.config import DataConfig, SourceConfig

    texts = [f"{first} {second}" for first in WORDS[:6] for second in WORDS[6:10]]
    train = write_csv(tmp_path / "train.csv", ["positive", "negative"] * 12, texts)
    config = tmp_path / "c.yaml"
    stage = {"name": "s", "teacher": None, "train": {"steps": 1}, "student": {"pretrained": str(classifier)}}
    content = {"name": "c", "data": {"train": {"path": str(train)}, "validation_share": 0.3}, "stages": [stage]}
    config.write_text(yaml.safe_dump(content))
    measured = json.loads(jaxdistill("evaluate", classifier, "--config", config, "--json").out)
    rows = data.load_rows(DataConfig(), SourceConfig(path=str(train)))
    assert measured["examples"] == len(data.split_by_hash(rows, 0.3)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((":nix",), "no stage 'nix'; this run has next, student/seed-1, student/seed-3"),
        ((":student/seed-9",), "no stage 'student/seed-9'"),
        ((":next",), "this stage has no student yet"),
        (("",), "a run directory; say which stage"),
        ((":student", "--data", "x.csv", "--split", "test"), "leave them out"),
        ((":student", "--text", "review"), "--text and --label name columns of --data"),
        ((":student", "--split", "train"), "expected validation or test"),
        ((":student", "--data", "nix.csv"), "nix.csv: no such file"),
        ((":student", "--data", "x.csv", "--text", "a", "--text", "b", "--text", "c"), "or two for a pair"),
        ((":student", "--data", "x.csv", "--text", "label"), "--text is label and --label label; expected one text"),
    ],
)
def test_what_does_not_fit_together_is_said(jaxdistill, run_directory, arguments, message):
    result = jaxdistill("evaluate", f"{run_directory}{arguments[0]}", *arguments[1:])
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_model_that_is_nowhere(jaxdistill, tmp_path, labelled):
    assert "no such model directory" in jaxdistill("evaluate", tmp_path / "nix", "--data", labelled).err
    assert jaxdistill("evaluate", "no-org/no-model", "--data", labelled).status == 4
