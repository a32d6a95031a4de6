"""Terms on hidden states and attention, against loops over tokens in float64; padding, packing, splitting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxdistill.config.loss_schema import (
    AttentionKLTerm,
    AttentionMSETerm,
    ContrastiveTerm,
    CorrelationTerm,
    CosineTerm,
    CrossEntropyTerm,
    DecoupledTerm,
    DivergenceTerm,
    EmbeddingTerm,
    HiddenStateTerm,
    PatientTerm,
    RelationTerm,
    SimilarityTerm,
    SkewedKLTerm,
)
from jaxdistill.distill import make_objective
from jaxdistill.errors import ConfigError

B, S, N, H, DEPTHS = 4, 5, 2, 3, (2, 4)
SHAPES = {
    "hidden_states": (B, S, N * H),
    "attention_scores": (B, N, S, S),
    "qkv": (3, B, S, N, H),
}
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
SEGMENTS = np.array([[1, 1, 1, 2, 2], [1, 2, 2, 0, 0], [1, 1, 1, 1, 1], [1, 1, 2, 2, 0]])
REAL = 3  # the last row fills up


def make(kind):
    """A batch of padded texts, or of packed documents."""
    batch = {"example_id": np.array([0, 1, 2, -1], np.int32)}
    if kind == "encoder":
        return batch | {"attention_mask": MASK.astype(np.int32), "labels": np.array([0, 1, -100, -100], np.int32)}
    return batch | {"segment_ids": SEGMENTS.astype(np.int32), "labels": np.full((B, S), -100, np.int32)}


def counted(batch):
    """bool [B, S]: tokens that are neither padding nor in a row that fills up."""
    present = batch["attention_mask"] if "attention_mask" in batch else batch["segment_ids"]
    return (present > 0) & (batch["example_id"] >= 0)[:, None]


def keys_of(batch, row, query):
    """The tokens that a token attends to."""
    tokens = np.flatnonzero(counted(batch)[row])
    if "segment_ids" not in batch:
        return tokens
    own = batch["segment_ids"][row]
    return np.array([key for key in tokens if key <= query and own[key] == own[query]])


def signals(objective, batch, seed=0, noise=np.nan):
    """Random signals as asked for, float32; whatever belongs to padding is `noise`."""
    rng = np.random.default_rng(seed)
    out = []
    padding = ~counted(batch)
    for request in (objective.student_outputs, objective.outputs_of(0)):
        arrays = {}
        for name, layers in request.items():
            if layers is None:
                arrays[name] = rng.normal(0, 2, (*batch["labels"].shape, 7)).astype(np.float32)
                continue
            array = rng.normal(0, 1, (len(layers), *SHAPES[name])).astype(np.float32)
            match name:
                case "attention_scores":
                    array[:, np.broadcast_to(padding[:, None, :, None], SHAPES[name])] = noise
                    array[:, np.broadcast_to(padding[:, None, None, :], SHAPES[name])] = noise
                case "qkv":
                    array[:, :, padding] = noise
                case _:
                    array[:, padding] = noise
            arrays[name] = array
        out.append(arrays)
    return out


def evaluate(objective, student, teacher, batch, counts=None):
    batch = jax.tree.map(jnp.asarray, batch)
    counts = objective.counts(batch) if counts is None else counts
    read = [jax.tree.map(jnp.asarray, each) for each in (student, teacher)]
    return objective(read[0], read[1:], batch, counts=counts)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def kl(teacher, student):
    p, q = log_softmax(teacher), log_softmax(student)
    return (np.exp(p) * (p - q)).sum()


def token_mean(batch, value):
    """Mean of value(row, token) over the tokens that count."""
    return np.mean([value(row, token) for row, token in np.argwhere(counted(batch))])


def of_states(distance):
    def expected(batch, student, teacher):
        pairs = zip(student["hidden_states"], teacher["hidden_states"], strict=True)
        return np.mean([token_mean(batch, lambda b, t, s=s, o=o: distance(s[b, t], o[b, t])) for s, o in pairs])

    return expected


def attention(distance):
    def expected(batch, student, teacher):
        def value(b, t, s, o):
            keys = keys_of(batch, b, t)
            return np.mean([distance(o[b, n, t, keys], s[b, n, t, keys]) for n in range(N)])

        pairs = zip(student["attention_scores"], teacher["attention_scores"], strict=True)
        return np.mean([token_mean(batch, lambda b, t, s=s, o=o: value(b, t, s, o)) for s, o in pairs])

    return expected


def relations(kinds, heads):
    def expected(batch, student, teacher):
        def value(b, t, kind, head):
            keys, width = keys_of(batch, b, t), N * H // heads
            products = []
            for qkv in (teacher["qkv"][0], student["qkv"][0]):
                x = qkv[kind][b].reshape(S, N * H)[:, head * width : (head + 1) * width]
                products.append(x[keys] @ x[t] / np.sqrt(width))
            return kl(*products)

        return sum(
            np.mean([token_mean(batch, lambda b, t, k=k, n=n: value(b, t, k, n)) for n in range(heads)]) for k in kinds
        )

    return expected


def patient(batch, student, teacher):
    places = [(row, 0) for row in range(REAL)]
    if "segment_ids" in batch:
        places = [(0, 2), (0, 4), (1, 0), (1, 2), (2, 4)]  # where documents end
    pairs = zip(student["hidden_states"], teacher["hidden_states"], strict=True)
    return np.mean([[((unit(s[p]) - unit(o[p])) ** 2).sum() for p in places] for s, o in pairs])


def similarity(batch, student, teacher):
    grams = []
    for states in (student["hidden_states"][0], teacher["hidden_states"][0]):
        flat = np.where(counted(batch)[..., None], states, 0)[:REAL].reshape(REAL, -1)
        grams.append(unit(flat @ flat.T))
    return ((grams[0] - grams[1]) ** 2).sum() / REAL**2


def contrastive(batch, student, teacher):
    pooled = []
    for states in (student["hidden_states"][0], teacher["hidden_states"][0]):
        pooled.append(unit(np.stack([states[row][counted(batch)[row]].mean(0) for row in range(REAL)])))
    return -np.diag(log_softmax(pooled[0] @ pooled[1].T / 0.5, axis=-1)).mean()


def mean_squared(a, b):
    return np.mean((a - b) ** 2)


CASES = {
    "hidden": (HiddenStateTerm("hidden_state_mse"), of_states(mean_squared)),
    "embeddings": (EmbeddingTerm("embedding_mse"), of_states(mean_squared)),
    "cosine": (CosineTerm("cosine"), of_states(lambda a, b: 1 - unit(a) @ unit(b))),
    "patient": (PatientTerm("patient", layers="uniform"), patient),
    "attention mse": (AttentionMSETerm("attention_mse"), attention(mean_squared)),
    "attention kl": (AttentionKLTerm("attention_kl"), attention(kl)),
    "value relations": (RelationTerm("relation_kl"), relations([2], N)),
    "six heads": (RelationTerm("relation_kl", relations=("query", "key"), relation_heads=6), relations([0, 1], 6)),
    "similarity": (SimilarityTerm("similarity_preserving"), similarity),
    "contrastive": (ContrastiveTerm("contrastive", temperature=0.5), contrastive),
}
COUPLED = ("similarity", "contrastive")


@pytest.mark.parametrize("kind", ["encoder", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_terms_are_their_formulas_whatever_the_padding_holds(case, kind):
    term, expected = CASES[case]
    batch = make(kind)
    objective = make_objective([term], [1.0], depths=DEPTHS)
    student, teacher = signals(objective, batch)

    def loss(student):
        return evaluate(objective, student, teacher, batch)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, student))
    wide = [jax.tree.map(lambda x: x.astype(np.float64), each) for each in (student, teacher)]
    np.testing.assert_allclose(value, expected(batch, *wide), rtol=1e-5)
    for name, array in gradient.items():
        assert np.isfinite(array).all(), name
        assert (np.asarray(array)[np.isnan(student[name])] == 0).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("encoder", marks=pytest.mark.long), "packed"])
def test_rows_add_up_to_their_batch(kind):
    batch = make(kind)
    terms = [term for case, (term, _) in CASES.items() if case not in COUPLED]
    objective = make_objective(terms, [1.0], depths=DEPTHS)
    assert not objective.coupled
    student, teacher = signals(objective, batch, noise=0.5)
    whole = evaluate(objective, student, teacher, batch)
    counts = objective.counts(jax.tree.map(jnp.asarray, batch))
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        cut = [
            {name: array[:, :, rows] if name == "qkv" else array[:, rows] for name, array in each.items()}
            for each in (student, teacher)
        ]
        parts.append(evaluate(objective, *cut, part, counts=counts))
    total = jax.tree.map(lambda *values: sum(map(float, values)), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total, whole)


@pytest.mark.slow
def test_a_batch_spread_over_devices_is_the_batch():
    """Under jit every term sees the whole batch, those that compare its examples too."""
    batch = make("encoder")
    terms = [CASES[case][0] for case in ("hidden", "value relations", *COUPLED)]
    objective = make_objective([*terms, CorrelationTerm("dist")], [1.0], depths=DEPTHS)
    assert objective.coupled
    student, teacher = signals(objective, batch, noise=0.5)
    expected = evaluate(objective, student, teacher, batch)
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))

    def placed(name, array):
        axis = {"qkv": 2, "labels": 0, "logits": 0, "example_id": 0, "attention_mask": 0}.get(name, 1)
        spec = jax.sharding.PartitionSpec(*[None] * axis, "data")
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

    spread = [{name: placed(name, array) for name, array in each.items()} for each in (student, teacher, batch)]
    got = jax.jit(lambda s, t, b: objective(s, [t], b, counts=objective.counts(b)))(*spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_every_teacher_has_layers_of_its_own():
    """Teachers of depths 4 and 2: weighted mean of what either gives alone."""
    batch = make("encoder")
    terms = [HiddenStateTerm("hidden_state_mse"), CosineTerm("cosine")]
    both = make_objective(terms, [3.0, 1.0], depths=(2, 4, 2))
    assert both.student_outputs == {"hidden_states": (1, 2)}
    assert [both.outputs_of(index) for index in (0, 1)] == [{"hidden_states": (2, 4)}, {"hidden_states": (1, 2)}]
    alone = make_objective(terms, [1.0], depths=(2, 2))
    (student, first), (_, second) = (signals(alone, batch, seed) for seed in (0, 1))
    values = [evaluate(alone, student, teacher, batch)[0] for teacher in (first, second)]
    moved = jax.tree.map(jnp.asarray, batch)
    got = both(student, [first, second], moved, counts=both.counts(moved))[0]
    np.testing.assert_allclose(got, 0.75 * values[0] + 0.25 * values[1], rtol=1e-6)


def test_logits_are_fused_beside_terms_that_read_layers():
    terms = [DivergenceTerm("forward_kl"), CrossEntropyTerm("cross_entropy"), HiddenStateTerm("hidden_state_mse")]
    objective = make_objective(terms, [1.0], depths=DEPTHS, fused="auto")
    assert objective.student_outputs == {"hidden_states": (1, 2), "head": None}
    assert objective.outputs_of(0) == {"hidden_states": (2, 4), "head": None}
    alone = make_objective(terms[2:], [1.0], depths=DEPTHS, fused="on")
    assert alone.student_outputs == {"hidden_states": (1, 2)}


def test_all_padding_is_no_loss():
    batch = make("encoder") | {"example_id": np.full(B, -1, np.int32)}
    objective = make_objective([term for term, _ in CASES.values()], [1.0], depths=DEPTHS)
    student, teacher = signals(objective, batch)
    assert evaluate(objective, student, teacher, batch)[0] == 0


@pytest.mark.parametrize(
    "term", [DecoupledTerm("dkd", other_weight=2.0), SkewedKLTerm("skewed_kl"), CorrelationTerm("dist")]
)
def test_more_terms_on_logits_vanish_where_both_agree_and_only_there(term):
    batch = make("encoder")
    objective = make_objective([term], [1.0])
    student, teacher = signals(objective, batch)
    assert float(evaluate(objective, student, student, batch)[0]) == pytest.approx(0, abs=1e-6)
    assert evaluate(objective, student, teacher, batch)[0] > 0.01


def test_dkd_counts_rows_with_a_label():
    batch = make("encoder")
    objective = make_objective([DecoupledTerm("dkd", temperature=2.0, other_weight=0.5)], [1.0])
    student, teacher = signals(objective, batch)
    expected = []
    for row in (0, 1):
        p, q = (np.exp(log_softmax(x["logits"][row].astype(np.float64) / 2)) for x in (teacher, student))
        label = batch["labels"][row]
        target = sum(a * np.log(a / b) for a, b in ((p[label], q[label]), (1 - p[label], 1 - q[label])))
        rest = [np.delete(x, label) / (1 - x[label]) for x in (p, q)]
        expected.append(4 * (target + 0.5 * (rest[0] * np.log(rest[0] / rest[1])).sum()))
    np.testing.assert_allclose(evaluate(objective, student, teacher, batch)[0], np.mean(expected), rtol=1e-5)


def test_other_layers_than_were_asked_for_are_refused():
    batch = make("encoder")
    objective = make_objective([HiddenStateTerm("hidden_state_mse")], [1.0], depths=DEPTHS)
    student, teacher = signals(objective, batch)
    every = {"hidden_states": np.zeros((5, *SHAPES["hidden_states"]), np.float32)}
    with pytest.raises(ValueError, match=r"hidden_states: 2 layers were asked for \(2, 4\), 5 came"):
        evaluate(objective, student, every, batch)
    assert teacher["hidden_states"].shape[0] == 2


def test_depths_must_be_known():
    with pytest.raises(ConfigError, match=r"hidden_state_mse reads layers.*got \[\]"):
        make_objective([HiddenStateTerm("hidden_state_mse")], [1.0])
