"""What a run's data cannot be: sources, columns, labels and text for teachers that do not go together."""

from __future__ import annotations

import pytest
from raw_runs import assert_one_problem, run, stage

DATA = {"train": {"asset": "sentiment", "split": "train"}}
TEACHER = stage("teacher", teacher=None)

CASES = {
    "unlabelled text that nobody labels": (
        run(TEACHER, data=DATA | {"unlabelled": [{"path": __file__}]}),
        "data.unlabelled: no stage has a teacher to label the text; remove it",
    ),
    "variants that nobody labels": (
        run(TEACHER, data=DATA | {"augment": {}}),
        "data.augment: no stage has a teacher to label the text; remove it",
    ),
    "variants of probability above one": (
        run(data=DATA | {"augment": {"mask": 0.6, "replace": 0.5}}),
        "data.augment: mask and replace add up to 1.1; expected probabilities of at most 1",
    ),
    "variants that do not vary": (
        run(data=DATA | {"augment": {"mask": 0, "replace": 0, "ngram": 0}}),
        "data.augment: mask, replace and ngram are all 0, so nothing would vary; remove it",
    ),
    "an unlabelled source of two kinds": (
        run(data=DATA | {"unlabelled": [{"path": __file__}, {"path": __file__, "vocabulary": True}]}),
        "data.unlabelled.1: got path and vocabulary; expected exactly one of path, hub, asset, vocabulary",
    ),
    "unlabelled text of another shape": (
        run(data=DATA | {"unlabelled": [{"path": __file__, "text": ["a", "b"]}]}),
        "data.unlabelled.0.text: got 2 columns; expected 1, as data.text has",
    ),
    "a vocabulary of pairs": (
        run(data=DATA | {"text": ["a", "b"], "unlabelled": [{"vocabulary": True}]}),
        "data.unlabelled.0.vocabulary: words are single texts, but data.text has 2 columns",
    ),
    "text between separators that is cut": (
        run(TEACHER, data=DATA | {"task": "masked_lm", "packing": "concat"}),
        "data.packing: got 'concat', which cuts what a masked language model's separators enclose; expected first_fit, "
        "which fills rows as well, or none",
    ),
    "masks of more than all chosen tokens": (
        run(TEACHER, data=DATA | {"task": "masked_lm", "masking": {"mask": 0.9, "random": 0.2}}),
        "data.masking: mask and random add up to 1.1; expected shares of at most 1 together",
    ),
    "masked pairs": (
        run(TEACHER, data=DATA | {"task": "masked_lm", "text": ["a", "b"]}),
        "data.text: got two columns; expected one",
    ),
    "masks for a classifier": (
        run(TEACHER, data=DATA | {"masking": {"whole_words": True}}),
        "data.masking: only masked_lm reads it, and data.task is classification; remove it",
    ),
    "masks in a stage of a classifier": (
        run(TEACHER, stage("b", data={"masking": {"whole_words": True}})),
        "stages.1.data.masking: only masked_lm reads it, and data.task is classification; remove it",
    ),
    "more masked in a stage than there is": (
        run(stage("a", teacher=None, data={"masking": {"random": 0.5}}), data=DATA | {"task": "masked_lm"}),
        "stages.0.data.masking: mask and random add up to 1.3; expected shares of at most 1 together",
    ),
    "windows of a stage that get no further": (
        run(
            stage("a", teacher=None, data={"doc_stride": 40, "max_length": 32}),
            data=DATA | {"task": "question_answering"},
        ),
        "stages.0.data.doc_stride: windows of 32 tokens (data.max_length) cannot share 40 tokens",
    ),
    "masked tokens kept in memory": (
        run(TEACHER, stage("student"), data=DATA | {"task": "masked_lm"}, teacher_cache="memory"),
        "teacher_cache: got 'memory', but the teacher's input is masked anew in every epoch, and nothing it said would "
        "fit; write off",
    ),
    "two sources": (
        run(data={"train": {"path": "a.csv", "hub": "x"}}),
        "data.train: got path and hub; expected exactly one of path, hub, asset",
    ),
    "no source": (run(data={"train": {"limit": 3}}), "data.train: got none of them; expected exactly one"),
    "subset of a file": (
        run(data={"train": {"asset": "x"}, "test": {"path": "a.csv", "config": "sst2"}}),
        "data.test.config: only for hub, and this is path: a.csv; remove it",
    ),
    "a stage's source replaces the whole": (
        run(TEACHER, stage("b", data={"train": {"limit": 3}})),
        "stages.1.data.train: got none of them; expected exactly one of path, hub, asset (a stage's source replaces",
    ),
    "no training data": (run(data={}), "data.train: missing; expected {path: FILE}"),
    "no training data in one stage": (
        run(stage("a", teacher=None, data={"train": {"asset": "x"}}), stage("b"), data={}),
        "stages.1.data.train: missing, and the run's data has no train either",
    ),
    "label names twice": (
        run(data={"train": {"asset": "x"}, "label_names": ["a", "b", "a"]}),
        "data.label_names: 'a' is given twice",
    ),
    "a label name with a blank": (
        run(data={"train": {"asset": "x"}, "label_names": ["a", " b"]}),
        "data.label_names: got ' b'; expected a name without blanks around it",
    ),
    "a text column twice": (
        run(data={"train": {"asset": "x"}, "text": ["a", "a"]}),
        "data.text: column 'a' is given twice; a pair is two columns",
    ),
    "the label as a text": (
        run(TEACHER, stage("b", data={"text": ["label"]})),
        "stages.1.data.label: column 'label' is also a text; expected the column of the labels",
    ),
    "one label name": (
        run(data={"train": {"asset": "x"}, "label_names": ["a"]}),
        "data.label_names: got ['a']; expected at least two classes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradiction(name):
    assert_one_problem(*CASES[name])
