"""Losses as they are written: every term, presets and schedules, and what contradicts them."""

from __future__ import annotations

import pytest
from raw_runs import problems, run, stage

from jaxdistill.config import build_chain, describe, resolved_dict, run_from_dict
from jaxdistill.config.loss_schema import AttentionKLTerm, RelationTerm, Schedule

TEACHER = stage("teacher", teacher=None)
RAMP = {"schedule": "linear", "from": 1, "to": 0.25, "over": 0.5}


def formula(loss):
    """What the chain's table shows of a student's loss."""
    return describe(build_chain(run_from_dict(run(TEACHER, stage("student", loss=loss)))))[1]["loss"]


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ([{"type": "hidden_state_mse"}], "MSE(hidden, uniform layers)"),
        ([{"type": "hidden_state_mse", "layers": [[1, 2], [-1, -1]]}], "MSE(hidden, layers 1←2, -1←-1)"),
        ([{"type": "embedding_mse", "weight": 2}, {"type": "cosine"}], "2·MSE(embeddings) + cosine(last hidden)"),
        ([{"type": "patient"}], "patient(skip layers)"),
        ([{"type": "attention_mse", "layers": "last"}], "MSE(attention scores, last layers)"),
        ([{"type": "similarity_preserving"}], "similarity(layer -1←-1)"),
        ([{"type": "contrastive", "pooling": "first"}], "contrastive(first, τ=0.1)"),
        ([{"type": "dkd", "temperature": 4}], "T²·DKD(1:8, T=4)"),
        ([{"type": "dist"}], "DIST(1:1, T=1)"),
        ([{"type": "skewed_kl"}], "skewed KL(skew=0.1, T=1)"),
        ([{"type": "taid", "temperature": 2}], "T²·TAID(progress=0→1, T=2)"),
        ([{"type": "forward_kl", "weight": RAMP, "temperature": 2}], "(1→0.25)·T²·KL(T=2)"),
        (
            [{"type": "forward_kl", "temperature": {"schedule": "steps", "values": [4, 2, 1], "at": [5, 9]}}],
            "T²·KL(T=4|2|1)",
        ),
        ({"preset": "distilbert"}, "5·T²·KL(T=2) + 2·CE + cosine(last hidden)"),
        ({"preset": "pkd", "layers": "last"}, "0.7·T²·KL(T=10) + 0.3·CE + 500·patient(last layers)"),
        ({"preset": "minilm"}, "KL(attention, layer -1←-1) + KL(value relations, layer -1←-1)"),
        (
            {"preset": "minilm_v2", "relation_heads": 4, "layers": [[-1, -2]]},
            "KL(query+key+value relations, 4 heads, layer -1←-2)",
        ),
        ({"preset": "llama"}, "0.7·T²·KL(T=2) + 0.3·CE"),
    ],
)
def test_formulas(loss, text):
    assert formula(loss) == text


def test_minilm_reads_attention_and_values_of_the_same_layers():
    made = build_chain(run_from_dict(run(TEACHER, stage("a", loss={"preset": "minilm", "layers": [[-1, -2]]}))))
    pairs = ((-1, -2),)
    assert made.stage("a").terms == (
        AttentionKLTerm("attention_kl", layers=pairs),
        RelationTerm("relation_kl", relations=("value",), layers=pairs),
    )


def test_schedules_come_back_from_the_resolved_run():
    loss = [{"type": "forward_kl", "weight": RAMP}, {"type": "taid"}, {"type": "patient", "layers": [[1, 1]]}]
    made = run_from_dict(run(TEACHER, stage("student", loss=loss)))
    terms = made.stages[1].loss
    assert isinstance(terms, tuple)
    assert terms[0].weight == Schedule("linear", start=1.0, end=0.25, over=0.5)
    assert run_from_dict(resolved_dict(made)).stages == made.stages


def term(**keys):
    return run(TEACHER, stage("b", loss=[{"type": "forward_kl", **keys}, {"type": "cross_entropy"}]))


def scheduled(**keys):
    return term(weight=keys)


SIMILAR = {"type": "similarity_preserving"}
CASES = {
    "preset's foreign key": (
        run(TEACHER, stage("b", loss={"preset": "hinton", "beta": 2})),
        "stages.1.loss.beta: preset 'hinton' has no beta; expected temperature, alpha, or write its terms as a list",
    ),
    "cached teacher": (
        run(TEACHER, stage("b", loss={"preset": "minilm"}, teacher_cache="memory")),
        "stages.1.teacher_cache: memory keeps a teacher's logits, and attention_kl and relation_kl of the loss",
    ),
    "run's cache": (
        run(TEACHER, stage("b", loss=[{"type": "cosine"}]), teacher_cache="memory"),
        "stages.1.teacher_cache: memory keeps a teacher's logits, and cosine of the loss read more",
    ),
    "micro-batches": (
        run(TEACHER, stage("b", loss=[SIMILAR], train={"epochs": 1, "accumulate": 4})),
        "stages.1.train.accumulate: 4 micro-batches, but similarity_preserving compares the examples of a batch",
    ),
    "packed rows": (
        run(TEACHER, stage("b", loss=[SIMILAR], data={"batching": "packed"})),
        "stages.1.loss.0.type: similarity_preserving compares the examples of a batch with one another, each a row",
    ),
    "pmap": (
        run(TEACHER, stage("b", loss=[{"type": "dist"}]), parallel={"strategy": "pmap"}),
        "stages.1.loss.0.type: dist compares the examples of a batch with one another, and under pmap a device sees",
    ),
    "first token of a decoder": (
        run(
            stage("a", student={"architecture": "llama"}, teacher=None),
            stage("b", student={"architecture": "llama"}, loss=[{"type": "contrastive", "pooling": "first"}]),
            data={"task": "causal_lm", "train": {"path": "x.txt"}},
        ),
        "stages.1.loss.0.pooling: got 'first', but a causal language model's first token has seen nothing",
    ),
    "first token of several texts": (
        run(
            TEACHER,
            stage("b", loss=[{"type": "contrastive", "pooling": "first"}]),
            data={"task": "masked_lm", "train": {"path": "x.txt"}},
        ),
        "stages.1.loss.0.pooling: got 'first', but a row holds several texts, of which that is one; use mean, or "
        "data.packing: none",
    ),
    "relation twice": (
        run(TEACHER, stage("b", loss=[{"type": "relation_kl", "relations": ["key", "key"]}])),
        "stages.1.loss.0.relations: got ['key', 'key']; expected each at most once",
    ),
    "no number": (
        term(weight="x"),
        "stages.1.loss.0.weight: got 'x'; expected a number greater than or equal to 0, or",
    ),
    "no schedule": (term(temperature=[1]), "temperature: got [1]; expected a number greater than 0, or a schedule"),
    "unknown schedule": (
        scheduled(schedule="cosin", start=1, end=0),
        "stages.1.loss.0.weight.schedule: got 'cosin'; expected 'linear', 'cosine' or 'steps'; did you mean 'cosine'?",
    ),
    "no number in a schedule": (scheduled(schedule="linear", to=True), "weight.to: got true; expected a number"),
    "missing end": (scheduled(schedule="linear", start=1), "weight.end: missing; schedule: linear needs start and end"),
    "foreign key": (
        scheduled(schedule="linear", start=1, end=0, at=[3]),
        "stages.1.loss.0.weight.at: schedule: linear does not read it; remove it",
    ),
    "negative weight": (
        scheduled(schedule="linear", start=1, end=-1),
        "stages.1.loss.0.weight: goes through -1; expected a weight of at least 0",
    ),
    "cold": (
        term(temperature={"schedule": "cosine", "start": 2, "end": 0}),
        "stages.1.loss.0.temperature: goes through 0; expected a temperature above 0",
    ),
    "over one step": (scheduled(schedule="linear", start=1, end=0, over=1), "weight.over: got 1; expected a share of"),
    "over too much": (
        scheduled(schedule="linear", start=1, end=0, over=0.7, after=0.5),
        "stages.1.loss.0.weight.over: got 0.7, after 0.5; expected at most 0.5, the rest",
    ),
    "beyond the end": (
        run(
            TEACHER,
            stage(
                "b",
                train={"steps": 50},
                loss=[{"type": "forward_kl", "weight": {"schedule": "linear", "start": 1, "end": 0, "over": 60}}],
            ),
        ),
        "stages.1.loss.0.weight: goes on beyond the last step; expected after and over within train.steps, 50",
    ),
    "values without moments": (
        scheduled(schedule="steps", values=[1, 0], at=[0.2, 0.4]),
        "stages.1.loss.0.weight.at: got 2 moments for 2 values; expected one less than values",
    ),
    "shares and steps": (
        scheduled(schedule="steps", values=[1, 0, 2], at=[0.2, 40]),
        "stages.1.loss.0.weight.at: got [0.2, 40.0]; expected shares of the steps (below 1), or whole numbers of steps",
    ),
    "backwards": (
        scheduled(schedule="steps", values=[1, 0, 2], at=[40, 20]),
        "stages.1.loss.0.weight.at: got [40.0, 20.0]; expected each later than the one before",
    ),
    "never weighed": (
        run(
            TEACHER, stage("b", loss=[{"type": "cosine", "weight": {"schedule": "steps", "values": [0, 0], "at": [5]}}])
        ),
        "stages.1.loss: all weights are 0",
    ),
    "no teacher": (
        run(stage("a", teacher=None, loss=[{"type": "cosine"}])),
        "stages.0.loss.0.type: cosine needs a teacher, and the stage has none",
    ),
}


@pytest.mark.parametrize(("raw", "line"), CASES.values(), ids=CASES)
def test_contradictions(raw, line):
    (found,) = problems(raw)
    assert line in found


def test_labels_alone_may_keep_their_logits_small():
    loss = [{"type": "cross_entropy"}, {"type": "z_loss"}]
    assert run_from_dict(run(stage("a", teacher=None, loss=loss))).stages[0].loss is not None
