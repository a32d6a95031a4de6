from __future__ import annotations

import jax
import jax.numpy as jnp
import loss_oracle as oracle
import numpy as np
import pytest
from fused_examples import (
    DIVERGENCES,
    WEIGHTS,
    T,
    assert_close,
    assert_same,
    close_example,
    dense,
    fused,
    random_example,
    to_parameters,
    truth,
    value_and_gradients,
)

from jaxdistill import losses


@pytest.mark.parametrize(("tokens", "classes", "chunk_size"), [(13, 17, 4), (5, 1, None)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equals_the_dense_losses_on_odd_shapes(divergence, tokens, classes, chunk_size):
    example = random_example(tokens, classes)
    options = {"divergence": divergence}
    got = value_and_gradients(lambda e: fused(e, chunk_size=chunk_size, **options))(example)
    assert_same(got, value_and_gradients(lambda e: dense(e, **options))(example))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_matches_float64(divergence):
    example = random_example(12, 31)
    run = value_and_gradients(lambda e, t: fused(e, chunk_size=5, divergence=divergence, temperature=t))
    for temperature in (0.5, 1.0, 5.0):
        (loss, metrics), gradients = run(example, temperature)
        expected, sums, to_logits = truth(example, divergence=divergence, temperature=temperature)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for name, total in sums.items():
            np.testing.assert_allclose(metrics[name], total, rtol=2e-6, err_msg=name)
        for gradient, parameter in zip(gradients, to_parameters(example, to_logits), strict=True):
            assert_close(gradient, parameter, 2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nearly_equal_models(divergence, dtype):
    """The divergence alone, a few 1e-7 a token, which the textbook's formula loses in float32's rounding."""
    example = close_example(shift=9.0)
    narrow = example._replace(**{name: jnp.asarray(x, dtype) for name, x in example._asdict().items() if x.ndim == 2})
    alone = {"kd_weight": 0.7, "ce_weight": 0.0, "z_weight": 0.0}
    run = value_and_gradients(lambda e: fused(e, chunk_size=3, divergence=divergence, **alone))
    (_, metrics), gradients = run(narrow)
    _, sums, _ = truth(example, divergence=divergence, close=True)
    assert sums["kd"] / len(example.labels) < 1e-5
    np.testing.assert_allclose(metrics["kd"], sums["kd"], rtol=1e-5 if divergence == "jensen_shannon" else 3e-6)
    to_logits = 0.7 * oracle.GRADIENTS[divergence](*example.logits(), T)
    # In bfloat16 the logits' derivative is rounded before it is multiplied, and the product before it is returned.
    rounding = 1e-5 if dtype == jnp.float32 else 2.0**-7
    sizes = to_parameters(example._replace(**{k: np.abs(v) for k, v in example._asdict().items()}), np.abs(to_logits))
    for gradient, parameter, size in zip(gradients, to_parameters(example, to_logits), sizes, strict=True):
        assert gradient.dtype == dtype
        np.testing.assert_array_less(np.abs(np.asarray(gradient, np.float64) - parameter), rounding * size + 1e-12)


def test_bfloat16_is_close_to_float64_in_every_term():
    example = random_example(24, 40, 16, 12)
    narrow = example._replace(
        **{name: jnp.asarray(x, jnp.bfloat16) for name, x in example._asdict().items() if x.ndim == 2}
    )
    held = example._replace(**{name: np.asarray(x, np.float32) for name, x in narrow._asdict().items() if x.ndim == 2})
    (loss, _), gradients = value_and_gradients(lambda e: fused(e, chunk_size=7))(narrow)
    expected, _, to_logits = truth(held)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)  # products of bfloat16 are exact in float32
    for gradient, parameter in zip(gradients, to_parameters(held, to_logits), strict=True):
        assert_close(gradient, parameter, 2.0**-7)


def test_a_float32_head_beside_bfloat16_hidden_states_keeps_its_gradient_in_float32():
    example = random_example(24, 40)
    narrow = example._replace(student_hidden=jnp.asarray(example.student_hidden, jnp.bfloat16))
    (_, _), gradients = value_and_gradients(lambda e: fused(e, chunk_size=8))(narrow)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32]
    head = jnp.asarray(example.student_head, jnp.bfloat16)
    _, narrow_gradients = value_and_gradients(lambda e: fused(e, chunk_size=8))(narrow._replace(student_head=head))
    np.testing.assert_array_equal(gradients[1].astype(jnp.bfloat16), narrow_gradients[1])


def test_nothing_behind_an_excluded_token_has_any_effect():
    example = random_example()
    excluded = example.labels == -100
    spoiled_student, spoiled_teacher = example.student_hidden.copy(), example.teacher_hidden.copy()
    spoiled_student[excluded], spoiled_teacher[excluded] = np.nan, np.inf
    run = value_and_gradients(lambda e: fused(e, chunk_size=4))
    spoiled = example._replace(student_hidden=spoiled_student, teacher_hidden=spoiled_teacher)
    assert_same(run(spoiled), run(example))
    np.testing.assert_array_equal(run(spoiled)[1][0][excluded], 0)
    everything = run(spoiled._replace(labels=np.full(13, -100, np.int32)))
    for array in jax.tree.leaves(everything):
        np.testing.assert_array_equal(array, 0)


def test_where_counts_tokens_without_a_label_in_the_divergence_alone():
    example = random_example()
    where = np.arange(13) % 3 != 0
    assert (where & (example.labels == -100)).any()
    spoiled = example.student_hidden.copy()
    spoiled[~where] = np.nan
    got = value_and_gradients(lambda e: fused(e, chunk_size=4, where=jnp.asarray(where)))(
        example._replace(student_hidden=spoiled)
    )
    expected = value_and_gradients(lambda e: dense(e, where=jnp.asarray(where)))(example)
    assert got[0][1]["count"] == float(where.sum())
    assert_same(got, expected)


def test_a_label_that_is_no_class_is_loud():
    example = random_example()
    example.labels[4] = 17
    loss, metrics = fused(example, chunk_size=4)
    assert np.isnan(loss)
    assert np.isnan(metrics["ce"])
    assert np.isfinite(metrics["kd"])


@pytest.mark.parametrize(
    ("divergence", "weights"),
    [("forward_kl", None), ("jensen_shannon", [1.0, 3.0]), ("reverse_kl", jnp.asarray([0.25, 0.75]))],
)
def test_several_teachers_average_their_probabilities(divergence, weights):
    example, second = random_example(), random_example(teacher_width=9, seed=1)
    teachers = [(e.teacher_hidden, e.teacher_head) for e in (example, second)]

    def several(e):
        hidden, heads = zip(*teachers, strict=True)
        lists = e._replace(teacher_hidden=list(hidden), teacher_head=list(heads))
        return fused(lists, chunk_size=4, divergence=divergence, teacher_weights=weights)

    def mixture(e):
        logits = losses.mixture_logits([h @ w for h, w in teachers], weights=weights, temperature=T)
        return dense(e._replace(teacher_hidden=logits, teacher_head=jnp.eye(17)), divergence=divergence)

    assert_same(value_and_gradients(several)(example), value_and_gradients(mixture)(example), 2e-6)


def test_padded_vocabularies_are_cut_to_the_true_one():
    example = random_example(classes=17)
    rng = np.random.default_rng(3)
    student_padding, teacher_padding = (rng.normal(size=(d, n)).astype(np.float32) for d, n in ((7, 4), (5, 9)))
    padded = example._replace(
        student_head=np.concatenate([example.student_head, student_padding], axis=1),
        teacher_head=np.concatenate([example.teacher_head, teacher_padding], axis=1),
    )
    (loss, metrics), (to_hidden, to_head) = value_and_gradients(lambda e: fused(e, chunk_size=4, vocab_size=17))(padded)
    expected = value_and_gradients(lambda e: fused(e, chunk_size=4))(example)
    assert_same(((loss, metrics), (to_hidden, to_head[:, :17])), expected)
    np.testing.assert_array_equal(to_head[:, 17:], 0)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_jensen_shannon_at_its_ends(divergence):
    example = random_example()
    end, _ = fused(example, divergence="jensen_shannon", beta=0.0 if divergence == "forward_kl" else 1.0)
    np.testing.assert_array_equal(end, fused(example, divergence=divergence)[0])


def test_jensen_shannon_weighs_the_teacher_by_beta():
    example, options = random_example(), {"divergence": "jensen_shannon", "beta": 0.1}
    got = value_and_gradients(lambda e: fused(e, chunk_size=4, **options))(example)
    assert_same(got, value_and_gradients(lambda e: dense(e, **options))(example))


def test_temperature_and_weights_may_be_traced_and_are_constants():
    example = random_example()
    numbers = {"temperature": 3.0, **WEIGHTS}
    loss, metrics = fused(example, **numbers)
    traced = jax.jit(lambda values: fused(example, **values)[0])
    np.testing.assert_allclose(traced({k: jnp.float32(v) for k, v in numbers.items()}), loss, rtol=1e-6)
    for gradient in jax.grad(traced)({k: jnp.float32(v) for k, v in numbers.items()}).values():
        assert gradient == 0
    assert loss.dtype == jnp.float32
    assert {array.dtype for array in metrics.values()} == {jnp.dtype(jnp.float32)}
    assert set(metrics) == {"kd", "ce", "z", "count"}


def test_teachers_and_metrics_have_no_gradient():
    example = random_example()

    def loss(teacher_hidden, teacher_head):
        return fused(example._replace(teacher_hidden=teacher_hidden, teacher_head=teacher_head))[0]

    for gradient in jax.grad(loss, (0, 1))(example.teacher_hidden, example.teacher_head):
        np.testing.assert_array_equal(gradient, 0)
    by_metric = jax.grad(lambda hidden: fused(example._replace(student_hidden=hidden))[1]["kd"])
    np.testing.assert_array_equal(by_metric(example.student_hidden), 0)


def test_a_term_of_weight_zero_is_not_computed():
    example = random_example()
    labels_alone = {"kd_weight": 0, "ce_weight": 0.5, "z_weight": 0.1}
    without_teacher = example._replace(teacher_hidden=None, teacher_head=None)
    loss, metrics = fused(without_teacher, **labels_alone)
    assert metrics["kd"] == 0
    np.testing.assert_allclose(loss, fused(example, **{**labels_alone, "kd_weight": jnp.float32(0)})[0], rtol=1e-6)
    unlikely = example._replace(labels=np.where(example.labels >= 0, 99, -100))  # CE would be NaN
    assert np.isfinite(fused(unlikely, kd_weight=1.0, ce_weight=0.0, z_weight=0.0)[0])


def test_under_vmap_and_scan():
    examples = [random_example(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *examples)
    run = value_and_gradients(lambda e: fused(e, chunk_size=4))
    one_by_one = jax.tree.map(lambda *arrays: np.stack(arrays), *[run(example) for example in examples])
    assert_same(jax.vmap(run)(stacked), one_by_one)
    scanned = jax.jit(lambda batch: jax.lax.scan(lambda carry, e: (carry, run(e)), None, batch)[1])(stacked)
    assert_same(scanned, one_by_one)


def test_micro_batches_and_chunks_add_up_to_the_whole():
    example = random_example(tokens=12)
    run = value_and_gradients(lambda e: fused(e))
    (loss, metrics), (to_hidden, to_head) = run(example)
    per_token = ("student_hidden", "teacher_hidden", "labels")
    parts = [run(example._replace(**{n: getattr(example, n)[i : i + 4] for n in per_token})) for i in (0, 4, 8)]
    (losses_, _), (to_hiddens, to_heads) = jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
    np.testing.assert_allclose(losses_.sum(), loss, rtol=1e-6)
    assert_close(to_hiddens.reshape(12, -1), to_hidden)
    assert_close(to_heads.sum(0), to_head)
    assert metrics["count"] == float((example.labels != -100).sum())


def test_no_tokens():
    loss, metrics = fused(random_example(tokens=3)._replace(**empty_tokens()))
    assert loss == 0
    assert metrics["count"] == 0


def empty_tokens():
    return {
        "student_hidden": np.zeros((0, 7), np.float32),
        "teacher_hidden": np.zeros((0, 5), np.float32),
        "labels": np.zeros(0, np.int32),
    }


def test_bad_arguments_are_named():
    example = random_example()
    wrong = {
        r"student_hidden and student_head must agree in width.*\(13, 7\) and \(17, 7\).*transposed": {
            "student_head": example.student_head.T
        },
        r"teacher_hidden must have shape \[tokens, width\], got \(1, 13, 5\)": {
            "teacher_hidden": example.teacher_hidden[None]
        },
        r"teacher_hidden must hold the student's 13 tokens, got shape \(12, 5\)": {
            "teacher_hidden": example.teacher_hidden[1:]
        },
        r"same vocabulary, got \[17, 16\] columns.*vocab_size": {"teacher_head": example.teacher_head[:, 1:]},
        r"student_head must be floating point, got int32": {"student_head": np.ones((7, 17), np.int32)},
        r"labels must be integer": {"labels": np.zeros(13, np.float32)},
        r"must be given unless kd_weight is a plain 0": {"teacher_head": None},
        r"both be arrays, or both lists": {"teacher_head": [example.teacher_head]},
        r"one array for each teacher, got 0 and 0": {"teacher_hidden": [], "teacher_head": []},
    }
    for message, fields in wrong.items():
        with pytest.raises(ValueError, match=message):
            fused(example._replace(**fields))
    options = {
        r"divergence must be one of forward_kl.*'total_variation'": {"divergence": "total_variation"},
        r"beta must lie in \[0, 1\], got 2": {"beta": 2.0},
        r"beta must be a plain number": {"beta": jnp.float32(0.5)},
        r"temperature must be positive": {"temperature": 0},
        r"ce_weight must be finite, got inf": {"ce_weight": float("inf")},
        r"z_weight must be a number or a scalar array": {"z_weight": jnp.ones(2)},
        r"chunk_size must be a positive integer, got 0": {"chunk_size": 0},
        r"vocab_size must lie between 1 and the heads' 17 columns, got 18": {"vocab_size": 18},
        r"where must be bool": {"where": jnp.ones(13)},
    }
    for message, option in options.items():
        with pytest.raises(ValueError, match=message):
            fused(example, **option)
