"""Losses of several phases: what each trains, for how long, from whom, and what contradicts them."""

from __future__ import annotations

import pytest
from raw_runs import problems, run, stage

from jaxdistill.config import build_chain, resolved_dict, run_from_dict
from jaxdistill.config.loss_schema import AttentionMSETerm, DivergenceTerm, EmbeddingTerm, HiddenStateTerm

TEACHER = stage("teacher", teacher=None)
HINTON = {"preset": "hinton"}


def chain_of(loss, **keys):
    """The student's trainings."""
    return build_chain(run_from_dict(run(TEACHER, stage("student", loss=loss, **keys)))).stages[1:]


def test_phases_follow_each_other_and_the_last_has_the_stages_name():
    loss = [
        {"phase": "a", "terms": [{"type": "embedding_mse", "projection": "shared"}], "share": 0.5},
        {"phase": "b", "terms": HINTON, "learning_rate": 1e-5},
        {"phase": "c", "terms": [{"type": "cross_entropy"}]},
    ]
    train = {"steps": 10, "learning_rate": 1e-3}
    made = chain_of(loss, train=train, repeat={"seeds": [4, 2]}, checkpoint={"best": "f1"})
    assert [(s.key, s.phase, s.begins, s.seed) for s in made] == [
        ("student.a/seed-4", "a", None, 4),
        ("student.a/seed-2", "a", None, 2),
        ("student.b/seed-4", "b", "student.a/seed-4", 4),
        ("student.b/seed-2", "b", "student.a/seed-2", 2),
        ("student/seed-4", "c", "student.b/seed-4", 4),
        ("student/seed-2", "c", "student.b/seed-2", 2),
    ]
    first, second, third = made[::2]
    assert [s.config.train.steps for s in (first, second, third)] == [5, 3, 2]
    assert [s.config.train.learning_rate for s in (first, second, third)] == [1e-3, 1e-5, 1e-3]
    assert [s.config.checkpoint.best for s in (first, second, third)] == ["last", "last", "f1"]
    assert first.terms == (EmbeddingTerm("embedding_mse", projection="shared"),)


@pytest.mark.parametrize("steps", [2, 3, 7, 100])
def test_no_step_is_lost_between_phases(steps):
    loss = [{"phase": name, "terms": HINTON} for name in ("a", "b")]
    assert sum(s.config.train.steps or 0 for s in chain_of(loss, train={"steps": steps})) == steps
    assert [s.config.train.epochs for s in chain_of(loss, train={"epochs": 3})] == [1.5, 1.5]


def test_published_phases():
    between, prediction = chain_of({"preset": "tinybert"})
    assert between.terms == (
        EmbeddingTerm("embedding_mse", projection="shared"),
        HiddenStateTerm("hidden_state_mse", layers="uniform", projection="shared", reduce="sum"),
        AttentionMSETerm("attention_mse", layers="uniform", reduce="sum"),
    )
    assert prediction.terms == (DivergenceTerm("soft_cross_entropy", temperature=1.0),)
    hint, distillation = chain_of({"preset": "fitnets", "share": 0.25, "temperature": 4, "alpha": 1})
    assert hint.terms == (HiddenStateTerm("hidden_state_mse", layers="middle", projection="per_pair"),)
    assert distillation.terms == (DivergenceTerm("forward_kl", temperature=4.0),)
    assert (hint.config.train.epochs, distillation.config.train.epochs) == (0.25, 0.75)


def test_what_later_stages_learn_from_is_the_last_phase():
    made = build_chain(run_from_dict(run(TEACHER, stage("student", loss={"preset": "tinybert"}), stage("next"))))
    assert [s.key for s in made.stages] == ["teacher", "student.intermediate", "student", "next"]
    assert [teacher.stage for teacher in made.stage("next").teachers] == ["student"]


def test_phases_are_written_out_and_read_back():
    loss = [{"phase": "a", "terms": HINTON, "share": 0.25}, {"phase": "b", "terms": [{"type": "cross_entropy"}]}]
    made = run_from_dict(run(TEACHER, stage("student", loss=loss)))
    assert run_from_dict(resolved_dict(made)) == run_from_dict(resolved_dict(run_from_dict(resolved_dict(made))))
    assert run_from_dict(resolved_dict(made)).stages == made.stages


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ([{"phase": "a", "terms": HINTON}, {"type": "cross_entropy"}], "stages.1.loss: has terms beside phases"),
        ([{"phase": "a", "terms": HINTON}] * 2, "stages.1.loss.1.phase: 'a' is already the name of a phase"),
        (
            [{"phase": "a", "terms": HINTON, "share": 0.5}, {"phase": "b", "terms": HINTON, "share": 0.25}],
            "stages.1.loss: the phases' shares add up to 0.75; expected 1",
        ),
        (
            [{"phase": "a", "terms": HINTON, "share": 1}, {"phase": "b", "terms": HINTON}],
            "stages.1.loss: got shares of 1, which leave nothing to the other phases",
        ),
        ({"preset": "tinybert", "share": 1}, "stages.1.loss.share: got shares of 1, which leave nothing"),
        ({"preset": "hinton", "share": 0.5}, "stages.1.loss.share: preset 'hinton' has no share"),
        (
            [{"phase": "a", "terms": {"preset": "tinybert"}}],
            "stages.1.loss.0.terms.preset: preset 'tinybert' has phases",
        ),
        ([{"phase": "a", "terms": [{"type": "cosin"}]}], "stages.1.loss.0.terms.0: got type 'cosin'"),
        ([{"phase": "a", "terms": [{"type": "cosine", "weight": 0}]}], "stages.1.loss.0.terms: all weights are 0"),
        ([{"phase": "a/b", "terms": HINTON}], "stages.1.loss.0.phase: got 'a/b'"),
        (
            [{"phase": "a", "terms": [{"type": "hidden_state_mse", "projection": "all"}]}],
            "stages.1.loss.0.terms.0.projection: got 'all'; expected 'none', 'per_pair' or 'shared'",
        ),
    ],
)
def test_contradictions(loss, text):
    assert any(line.startswith(text) for line in problems(run(TEACHER, stage("student", loss=loss))))


def test_a_phase_needs_steps_and_its_warm_up_room():
    few = stage("student", loss={"preset": "tinybert"}, train={"steps": 1})
    assert any("phase intermediate gets none of the stage's 1 steps" in line for line in problems(run(TEACHER, few)))
    warm = stage("student", loss={"preset": "fitnets"}, train={"steps": 10, "warmup": 5})
    assert any("got 5 steps, and phase hint has 5" in line for line in problems(run(TEACHER, warm)))


def test_a_phase_without_a_teacher_may_only_read_labels():
    loss = [{"phase": "a", "terms": [{"type": "cosine"}]}, {"phase": "b", "terms": [{"type": "cross_entropy"}]}]
    found = problems(run(stage("student", teacher=None, loss=loss)))
    assert any(line.startswith("stages.0.loss.0.terms.0.type: cosine needs a teacher") for line in found)
