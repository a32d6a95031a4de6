"""Published recipes on inputs so small that their losses can be worked out with a pencil, from the papers' formulas.

Two classes: the student's logits (0, 2·ln 3) are probabilities (1/10, 9/10), and (1/4, 3/4) at T = 2; the teacher's are
(1/2, 1/2). So T²·KL is 4 · ½·ln(4/3) at T = 2 and ln(5/3) at T = 1; the label is class 0, its cross-entropy ln 10.
"""

from __future__ import annotations

from math import e, log, sqrt

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.config.loss_schema import PresetConfig
from jaxdistill.config.recipes import expand_loss, stage_phases
from jaxdistill.config.schema import StageConfig, TrainConfig
from jaxdistill.distill import make_objective

KL, KL_AT_1, CE = 2 * log(4 / 3), log(5 / 3), log(10)
STUDENT, TEACHER = [0.0, 2 * log(3)], [0.0, 0.0]
DEPTHS = (3, 6)
# One text of two tokens and one of padding, whose states no loss may see.
PADDING = [np.nan, np.nan]
BATCH = {
    "labels": jnp.asarray([0], jnp.int32),
    "example_id": jnp.asarray([0], jnp.int32),
    "attention_mask": jnp.asarray([[1, 1, 0]], jnp.int32),
}


def loss(preset, student=None, teacher=None, *, depths=DEPTHS, **keys):
    """Loss of a preset that is one training; further arguments as `value`, and the preset's own."""
    rest = {name: keys.pop(name) for name in ("batch", "logits") if name in keys}
    terms = expand_loss(PresetConfig(preset, **keys), has_teacher=True)
    return value(terms, student, teacher, depths=depths, **rest)


def phase(preset, index, student=None, teacher=None, *, depths, widths=(), projections=None, **keys):
    """Loss of one phase of a preset."""
    stage = StageConfig(name="student", train=TrainConfig(steps=10), loss=PresetConfig(preset, **keys))
    terms = stage_phases(stage, has_teacher=True)[index].terms
    return value(terms, student, teacher, depths=depths, widths=widths, projections=projections)


def value(
    terms,
    student=None,
    teacher=None,
    *,
    depths,
    batch=BATCH,
    logits=((STUDENT,), (TEACHER,)),
    widths=(),
    projections=None,
):
    """Loss of these terms; student and teacher: signals by name, {layer as the model counts: values}."""
    objective = make_objective(terms, [1.0], depths=depths, widths=widths, fused="off")
    signals = []
    for request, of_layers, own in (
        (objective.student_outputs, student or {}, logits[0]),
        (objective.outputs_of(0), teacher or {}, logits[1]),
    ):
        layers = {name: sorted(values) for name, values in of_layers.items()}
        assert {name: list(wanted) for name, wanted in request.items() if wanted is not None} == layers
        arrays = {
            name: jnp.asarray([values[k] for k in layers[name]], jnp.float32) for name, values in of_layers.items()
        }
        signals.append(arrays | ({"logits": jnp.asarray(own, jnp.float32)} if "logits" in request else {}))
    kernels = {term: {"teacher_1": jnp.asarray(each, jnp.float32)} for term, each in (projections or {}).items()}
    counts = objective.counts(batch)
    return float(objective(signals[0], signals[1:], batch, counts=counts, projections=kernels)[0])


@pytest.mark.parametrize(
    ("preset", "keys", "expected"),
    [
        ("hinton", {}, 0.7 * KL + 0.3 * CE),
        ("hinton", {"temperature": 1.0, "alpha": 0.25}, 0.25 * KL_AT_1 + 0.75 * CE),
        ("txtai", {}, KL_AT_1),
        ("txtai", {"alpha": 0.5}, 0.5 * KL_AT_1 + 0.5 * CE),
    ],
)
def test_logits_and_labels(preset, keys, expected):
    np.testing.assert_allclose(loss(preset, **keys), expected, rtol=1e-6)


def test_llama_counts_tokens_that_have_a_label():
    batch = {
        "labels": jnp.asarray([[0, -100]], jnp.int32),
        "example_id": jnp.asarray([0], jnp.int32),
        "segment_ids": jnp.asarray([[1, 1]], jnp.int32),
    }
    logits = ([[STUDENT, [5.0, -5.0]]], [[TEACHER, [7.0, 3.0]]])
    np.testing.assert_allclose(loss("llama", batch=batch, logits=logits), 0.7 * KL + 0.3 * CE, rtol=1e-6)


def test_distilbert():
    """The directions of the first token's states are at a right angle: 1; of the second's, (3, 4) and (4, 3): 1/25."""
    student = {"hidden_states": {3: [[[1, 0], [3, 4], PADDING]]}}
    teacher = {"hidden_states": {6: [[[0, 2], [8, 6], PADDING]]}}
    expected = 5 * KL + 2 * CE + (1 + 1 / 25) / 2
    np.testing.assert_allclose(loss("distilbert", student, teacher), expected, rtol=1e-6)


def test_pkd():
    """First tokens: (3, 4)/5 and (4, 3)/5 are 0.08 apart, squared, (1, 0) and (0, 1) 2; the last layer is left out."""
    rest = [[9, 9], PADDING]
    student = {"hidden_states": {1: [[[3, 4], *rest]], 2: [[[1, 0], *rest]]}}
    teacher = {"hidden_states": {2: [[[8, 6], *rest]], 4: [[[0, 2], *rest]]}}
    kept = {"temperature": 2.0, "alpha": 0.5, "beta": 10.0}
    expected = 0.5 * KL + 0.5 * CE + 10 * (0.08 + 2) / 2
    np.testing.assert_allclose(loss("pkd", student, teacher, **kept), expected, rtol=1e-6)
    last = {"hidden_states": {4: teacher["hidden_states"][2], 5: teacher["hidden_states"][4]}}
    np.testing.assert_allclose(loss("pkd", student, last, layers="last", **kept), expected, rtol=1e-6)


def test_pkds_own_numbers():
    terms = expand_loss(PresetConfig("pkd"), has_teacher=True)
    assert [(term.type, term.weight) for term in terms] == [
        ("forward_kl", 0.7),
        ("cross_entropy", 0.3),
        ("patient", 500.0),
    ]
    assert terms[0].temperature == 10  # pyright: ignore[reportAttributeAccessIssue]


NAN = float("nan")


def scores(first, second):
    """Of one head: what either token makes of both; padding is neither query nor key."""
    return [[[[*first, NAN], [*second, NAN], [NAN, NAN, NAN]]]]


def vectors(first, second):
    """Of one head that is one wide."""
    return [[[[first]], [[second]], [[NAN]]]]


def qkv(query, key, value):
    """[3, B, S, N, H]."""
    return np.concatenate([vectors(*query), vectors(*key), vectors(*value)]).reshape(3, 1, 3, 1, 1)


NOTHING = (0, 0)


def test_minilm():
    """The first token attends (1/4, 3/4) where the teacher's does (1/2, 1/2). Values (0, 1) relate the second token
    (1, e)/(1+e) to both, the teacher's (0, 0) evenly: KL = ln((1+e)/2) − 1/2. Means are over the two tokens."""
    student = {"attention_scores": {2: scores((0, log(3)), (5, 5))}, "qkv": {2: qkv((9, 9), (7, -7), (0, 1))}}
    teacher = {"attention_scores": {5: scores((1, 1), (0, 0))}, "qkv": {5: qkv(NOTHING, NOTHING, NOTHING)}}
    expected = log(4 / 3) / 2 / 2 + (log((1 + e) / 2) - 0.5) / 2
    np.testing.assert_allclose(loss("minilm", student, teacher), expected, rtol=1e-6)


def test_minilm_v2():
    """Queries relate the second token as values did above, values (0, √ln 3) relate it (1/4, 3/4); keys agree."""
    student = {"qkv": {2: qkv((0, 1), (3, 3), (0, sqrt(log(3))))}}
    teacher = {"qkv": {4: qkv(NOTHING, (-3, -3), NOTHING)}}
    expected = (log((1 + e) / 2) - 0.5) / 2 + log(4 / 3) / 2 / 2
    got = loss("minilm_v2", student, teacher, layers=((-1, -2),))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_minilm_v2_between_other_heads_and_widths():
    """A student of two heads one wide, a teacher of one head three wide, one relation head: the student's values are
    (1, 0) and (0, 1), which relate each token (e^a, 1) with a = 1/√2; the teacher's zeros relate all alike."""
    values = [[[1], [0]], [[0], [1]], [[NAN], [NAN]]]
    nothing = np.zeros((3, 2, 1))
    student = {"qkv": {2: np.asarray([nothing, nothing, values])[:, None]}}
    teacher = {"qkv": {5: np.zeros((3, 1, 3, 1, 3))}}
    a = 1 / sqrt(2)
    got = loss("minilm_v2", student, teacher, relation_heads=1)
    np.testing.assert_allclose(got, log((1 + e**a) / 2) - a / 2, rtol=1e-6)


# A student one wide, its teacher two: W = (1, 2) makes (1, 2) of 1.
SMALL = {1: [[[1], [-1], [NAN]]], 2: [[[2], [0], [NAN]]]}
LARGE = {2: [[[0, 0], [-1, -2], PADDING]], 4: [[[2, 4], [1, 1], PADDING]]}


def test_fitnets():
    """Hint: (1, 2) − (0, 0) squared is 5/2 on the average, and nothing is left of (−1, −2); then as Hinton."""
    student, teacher = {"hidden_states": {1: SMALL[1]}}, {"hidden_states": {2: LARGE[2]}}
    kernels = {"hidden_state_mse": [[[1, 2]]]}
    hint = phase("fitnets", 0, student, teacher, depths=(2, 4), widths=(1, 2), projections=kernels)
    np.testing.assert_allclose(hint, (5 / 2 + 0) / 2, rtol=1e-6)
    np.testing.assert_allclose(phase("fitnets", 1, depths=(2, 4)), 0.7 * KL + 0.3 * CE, rtol=1e-6)
    own = phase("fitnets", 1, depths=(2, 4), temperature=1.0, alpha=0.25)
    np.testing.assert_allclose(own, 0.25 * KL_AT_1 + 0.75 * CE, rtol=1e-6)


def two_heads(first, second):
    """Scores of two heads, padding neither query nor key."""
    return [[scores(*first)[0][0], scores(*second)[0][0]]]


def test_tinybert():
    """Added up: embeddings, W_e = (3, 0), of 1 and 2 are (3, 0) and (6, 0): 16/2 and 0, mean 4. Hidden states of the
    two layers: 5/4 as for FitNets, and (0 + 1)/2. Attention scores: of four pairs of head and token one differs by
    (1, 0), 1/8; in the last layer all by 2: 4. Then cross-entropy −½·ln(1/10) − ½·ln(9/10)."""
    same = ((7, 8), (9, 9))
    student = {
        "hidden_states": {0: [[[1], [2], [NAN]]], **SMALL},
        "attention_scores": {0: two_heads(((1, 0), (5, 5)), same), 1: two_heads(same, same)},
    }
    teacher = {
        "hidden_states": {0: [[[3, 4], [6, 0], PADDING]], **LARGE},
        "attention_scores": {
            1: two_heads(((0, 0), (5, 5)), same),
            3: two_heads(((9, 6), (11, 11)), ((5, 10), (7, 11))),
        },
    }
    kernels = {"embedding_mse": [[[3, 0]]], "hidden_state_mse": [[[1, 2]]]}
    between = phase("tinybert", 0, student, teacher, depths=(2, 4), widths=(1, 2), projections=kernels)
    np.testing.assert_allclose(between, 4 + (5 / 4 + 1 / 2) + (1 / 8 + 4), rtol=1e-6)
    np.testing.assert_allclose(phase("tinybert", 1, depths=(2, 4)), log(10 / 3), rtol=1e-6)
