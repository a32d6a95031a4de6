from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import loss_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_oracle import ATOL, RTOL

from jaxdistill import losses

KL_TYPE = ["forward_kl", "reverse_kl", "jensen_shannon", "soft_cross_entropy"]
TEMPERED = [*KL_TYPE, "total_variation"]
ALL = [*TEMPERED, "logit_mse"]

B, V = 6, 50


def _compiled(name):
    loss = getattr(losses, name)

    @jax.jit
    def value_and_gradient(student, teacher, temperature, where):
        def total(student):
            options = {"where": where} if name == "logit_mse" else {"where": where, "temperature": temperature}
            values = loss(student, teacher, **options)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(student)
        return values, gradient

    return value_and_gradient


COMPILED = {name: _compiled(name) for name in ALL}  # shared: compiling is most of what these tests cost


def ours(name, student, teacher, temperature=1.0, where=None):
    """Values and gradient with respect to the student, in float64 for comparing."""
    where = jnp.ones(student.shape[:-1], bool) if where is None else jnp.asarray(where)
    values, gradient = COMPILED[name](jnp.asarray(student), jnp.asarray(teacher), jnp.float32(temperature), where)
    return np.asarray(values, np.float64), np.asarray(gradient, np.float64)


def truth(name, student, teacher, temperature=1.0):
    arguments = (student, teacher) if name == "logit_mse" else (student, teacher, temperature)
    return getattr(oracle, name)(*arguments), oracle.GRADIENTS[name](*arguments)


def assert_gradient(got, expected, *, atol=ATOL):
    """Each row's error against that row's largest entry: a single entry may pass through zero."""
    error, scale = (np.abs(x).max(-1) for x in (got - expected, expected))
    assert np.isfinite(error).all()
    np.testing.assert_array_less(error, RTOL * scale + atol)


def gradient_atol(name, temperature):
    """T, times a fraction of a probability's last float32 digit: how exact log(q/m) is where q/m is far from 1."""
    return (3e-8 if name == "jensen_shannon" else ATOL) * max(temperature, 1.0)


def pairs(rng, shape=(B, V)):
    def noise(scale):
        return rng.normal(size=shape) * scale

    peak, other_peak = np.zeros(shape), np.zeros(shape)
    peak[:, 0], other_peak[:, -1] = 30.0, 30.0
    base, huge = noise(2), noise(1e4)
    outlier = base + noise(1e-4)
    outlier[:, shape[-1] // 2] += 8.0
    return {
        "near-1e-4": (base + noise(1e-4), base),
        "near-1e-2": (base + noise(1e-2), base),
        "near-but-shifted": (base + noise(1e-3) + rng.normal(size=(shape[0], 1)) * 10, base),
        "moderate": (noise(1), base),
        "far": (noise(10), noise(10)),
        "huge": (noise(1e4), noise(1e4)),
        "huge-and-near": (huge + noise(1), huge),
        "same-peak": (peak + noise(1e-2), peak),
        "another-peak": (other_peak + noise(1e-2), peak),
        "peaked-teacher": (noise(1), peak),
        "peaked-student": (peak, noise(1)),
        "one-outlier": (outlier, base),
        "one-outlier-below": (base, outlier),
    }


CASES = list(pairs(np.random.default_rng(0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPERED)
def test_values_and_gradients_match_float64(name, case, dtype):
    student, teacher = pairs(np.random.default_rng(7))[case]
    # Gradients are compared in float32: bfloat16 would round what leaves the loss.
    student, teacher = (np.asarray(jnp.asarray(x, dtype).astype(jnp.float32)) for x in (student, teacher))
    for temperature in (0.1, 1.0, 2.0, 100.0):
        values, gradient = ours(name, student, teacher, temperature)
        expected, expected_gradient = truth(name, student, teacher, float(np.float32(temperature)))
        np.testing.assert_allclose(values, expected, rtol=RTOL, atol=ATOL, err_msg=f"T={temperature}")
        if name != "total_variation" or dtype == jnp.float32:  # bfloat16 makes exact ties, where its derivative jumps
            assert_gradient(gradient, expected_gradient, atol=gradient_atol(name, temperature))


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "logit_mse"])
def test_low_precision_logits_are_computed_in_float32(name):
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in pairs(np.random.default_rng(3))["moderate"])
    values, gradient = COMPILED[name](student, teacher, jnp.float32(1), jnp.ones(B, bool))
    wide, wide_gradient = ours(name, student.astype(jnp.float32), teacher.astype(jnp.float32))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, wide)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide_gradient, rtol=2**-8)


@pytest.mark.parametrize("classes", [2, 1000, 128_000])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_nearly_equal_models_to_full_relative_precision(name, classes):
    """Where a converging student lives: no absolute tolerance to hide behind."""
    rng = np.random.default_rng(classes)
    teacher = np.stack([rng.normal(size=classes) * 2] * 4)
    noise = rng.normal(size=teacher.shape) * np.array([[1e-5], [1e-4], [1e-3], [1e-2]])
    teacher, student = teacher.astype(np.float32), (teacher + noise).astype(np.float32)
    values, gradient = ours(name, student, teacher)
    if name == "jensen_shannon":
        p, q = (np.exp(x) for x in oracle._log_two(student, teacher, 1.0))
        m = (p + q) / 2
        expected = sum(0.5 * (x * (np.expm1(np.log(m / x)) - np.log(m / x))).sum(-1) for x in (p, q))
    else:
        expected = oracle.close_kl(*((student, teacher) if name == "forward_kl" else (teacher, student)))
    assert expected[0] < 1e-9
    assert expected[-1] > 1e-6
    np.testing.assert_allclose(values, expected, rtol=RTOL if name != "jensen_shannon" else 1e-5, atol=0)
    expected_gradient = oracle.GRADIENTS[name](student, teacher)
    error = np.abs(gradient - expected_gradient).max(-1)
    np.testing.assert_array_less(error, 5e-6 * np.abs(expected_gradient).max(-1))


@pytest.mark.parametrize("name", ALL)
def test_oracle_gradients_match_finite_differences(name):
    rng = np.random.default_rng(11)
    student, teacher, direction = rng.normal(size=(3, 4, 7))
    arguments = () if name == "logit_mse" else (1.7,)
    step = 1e-6
    above, below = (getattr(oracle, name)(student + h * direction, teacher, *arguments) for h in (step, -step))
    slope = (oracle.GRADIENTS[name](student, teacher, *arguments) * direction).sum(-1)
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", [0.01, 0.9])
def test_jensen_shannon_weighs_the_teacher_by_beta(beta):
    student, teacher = (x.astype(np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    loss = functools.partial(losses.jensen_shannon, beta=beta, temperature=2.0)
    values, pull_back = jax.vjp(lambda s: loss(s, teacher), student)
    np.testing.assert_allclose(values, oracle.jensen_shannon(student, teacher, 2.0, beta), RTOL, ATOL)
    expected = oracle.GRADIENTS["jensen_shannon"](student, teacher, 2.0, beta)
    (gradient,) = pull_back(jnp.ones(B))
    assert_gradient(gradient, expected, atol=gradient_atol("jensen_shannon", 2.0))


def test_jensen_shannon_at_its_ends():
    student, teacher = (jnp.asarray(x, jnp.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    np.testing.assert_array_equal(
        losses.jensen_shannon(student, teacher, beta=0.0), losses.forward_kl(student, teacher)
    )
    np.testing.assert_array_equal(
        losses.jensen_shannon(student, teacher, beta=1.0), losses.reverse_kl(student, teacher)
    )
    # Divided by its vanishing weight, the divergence itself tends to the same two.
    tiny = 2.0**-20
    forward_limit = losses.jensen_shannon(student, teacher, beta=tiny) / tiny
    reverse_limit = losses.jensen_shannon(student, teacher, beta=1 - tiny) / tiny
    np.testing.assert_allclose(forward_limit, losses.forward_kl(student, teacher), rtol=1e-3)
    np.testing.assert_allclose(reverse_limit, losses.reverse_kl(student, teacher), rtol=1e-3)
    swapped = losses.jensen_shannon(teacher, student, beta=0.75)
    np.testing.assert_allclose(losses.jensen_shannon(student, teacher, beta=0.25), swapped, rtol=RTOL)


@pytest.mark.parametrize("name", ALL)
def test_equal_logits_give_exactly_zero(name):
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(B, V)) * 5, jnp.float32).at[:, 3].set(-jnp.inf)
    values, gradient = ours(name, logits, logits, 2.0)
    if name == "soft_cross_entropy":
        np.testing.assert_allclose(values, oracle.soft_cross_entropy(logits, logits, 2.0), RTOL, ATOL)
    else:
        np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_one_class_says_nothing(name):
    student, teacher = np.float32([[3.0], [-1e4], [0.1]]), np.float32([[-2.0], [1e4], [1e-3]])
    for temperature in (0.1, 1.0, 100.0):
        values, gradient = ours(name, student, teacher, temperature)
        np.testing.assert_array_equal(values, 0)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", TEMPERED)
def test_order_of_classes_and_a_common_shift_do_not_matter(name):
    rng = np.random.default_rng(13)
    student, teacher = (x.astype(np.float32) for x in pairs(rng)["moderate"])
    order = rng.permutation(V)
    values, gradient = ours(name, student, teacher)
    permuted, permuted_gradient = ours(name, student[:, order], teacher[:, order])
    np.testing.assert_allclose(permuted, values, rtol=2e-6)
    np.testing.assert_allclose(permuted_gradient, gradient[:, order], rtol=RTOL, atol=2e-7)
    grid = np.round(student * 64) / 64  # so that the shift is exact
    np.testing.assert_allclose(ours(name, grid + 256, teacher)[0], ours(name, grid, teacher)[0], rtol=2e-6)


@pytest.mark.parametrize("name", ALL)
def test_teacher_receives_exactly_zero_gradient(name):
    student, teacher = (jnp.asarray(x, jnp.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    loss = getattr(losses, name)
    if name == "logit_mse":
        np.testing.assert_array_equal(jax.grad(lambda t: loss(student, t).sum())(teacher), 0)
        return
    to_teacher, to_temperature = jax.jit(jax.grad(lambda t, tau: loss(student, t, temperature=tau).sum(), (0, 1)))(
        teacher, 2.0
    )
    np.testing.assert_array_equal(to_teacher, 0)
    assert to_temperature == 0  # a constant, as documented


@pytest.mark.parametrize("name", ALL)
def test_rubbish_behind_the_mask_reaches_neither_value_nor_gradient(name):
    student, teacher = (np.asarray(x, np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    values, gradient = ours(name, student, teacher)
    where = np.array([1, 0, 1, 1, 0, 1], bool)
    student[1, 0], student[4] = np.nan, np.inf
    teacher[1], teacher[4, 2] = -np.inf, np.nan
    masked, masked_gradient = ours(name, student, teacher, where=where)
    np.testing.assert_allclose(masked, np.where(where, values, 0), rtol=1e-6)
    np.testing.assert_allclose(masked_gradient, np.where(where[:, None], gradient, 0), rtol=1e-6, atol=1e-9)
    for array in ours(name, student, teacher, where=np.zeros(B, bool)):
        np.testing.assert_array_equal(array, 0)


def test_masked_equals_dropped():
    student, teacher = (np.asarray(x, np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    where = np.array([1, 0, 1, 1, 0, 1], bool)
    masked, masked_gradient = ours("forward_kl", student, teacher, where=where)
    dropped, dropped_gradient = ours("forward_kl", student[where], teacher[where])
    np.testing.assert_allclose(masked[where], dropped, rtol=1e-6)
    np.testing.assert_allclose(masked_gradient[where], dropped_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_unmasked_nan_is_not_hidden(name):
    student, teacher = (jnp.asarray(x, jnp.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    assert np.isnan(ours(name, student.at[2, 3].set(jnp.nan), teacher)[0][2])
    assert np.isnan(ours(name, student, teacher.at[2, 3].set(jnp.nan))[0][2])


@pytest.mark.parametrize("name", ALL)
def test_absent_on_both_sides_is_as_if_the_class_were_not_there(name):
    student, teacher = (np.asarray(x, np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    kept = V - 14
    student[:, kept:], teacher[:, kept:] = -np.inf, -np.inf
    values, gradient = ours(name, student, teacher)
    expected, expected_gradient = truth(name, student[:, :kept], teacher[:, :kept])
    share = kept / V if name == "logit_mse" else 1.0  # a mean over all classes
    np.testing.assert_allclose(values, expected * share, RTOL, ATOL)
    np.testing.assert_array_equal(gradient[:, kept:], 0)
    assert_gradient(gradient[:, :kept], expected_gradient * share, atol=gradient_atol(name, 1.0))


@pytest.mark.parametrize("name", TEMPERED)
def test_absent_for_the_teacher_alone(name):
    student, teacher = (np.asarray(x, np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    teacher[:, 7:30] = -np.inf
    values, gradient = ours(name, student, teacher, 2.0)
    if name == "reverse_kl":
        np.testing.assert_array_equal(values, np.inf)
        return
    np.testing.assert_allclose(values, getattr(oracle, name)(student, teacher, 2.0), RTOL, ATOL)
    if name != "jensen_shannon":
        assert_gradient(gradient, oracle.GRADIENTS[name](student, teacher, 2.0))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", TEMPERED)
def test_absent_for_the_student_alone(name):
    student, teacher = (np.asarray(x, np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    student[:, 7:30] = -np.inf
    teacher[:, 8] = -300.0  # no float32 probability, and yet not impossible
    values, gradient = ours(name, student, teacher, 2.0)
    if name in ("forward_kl", "soft_cross_entropy"):
        np.testing.assert_array_equal(values, np.inf)
        np.testing.assert_allclose(gradient, oracle.GRADIENTS["forward_kl"](student, teacher, 2.0), RTOL, 1e-6)
        return
    np.testing.assert_allclose(values, getattr(oracle, name)(student, teacher, 2.0), RTOL, ATOL)
    np.testing.assert_array_equal(gradient[:, 7:30], 0)
    assert np.isfinite(gradient).all()


def test_only_an_impossible_class_of_no_probability_is_infinite_too():
    student, teacher = np.zeros((B, V), np.float32), np.zeros((B, V), np.float32)
    student[:, 1], teacher[:, 1] = -np.inf, -500.0
    np.testing.assert_array_equal(ours("forward_kl", student, teacher)[0], np.inf)
    np.testing.assert_array_equal(ours("reverse_kl", teacher, student)[0], np.inf)
    np.testing.assert_array_equal(ours("reverse_kl", student, teacher)[0], 0.0)


@pytest.mark.parametrize("name", ["jensen_shannon", "total_variation"])
def test_nothing_in_common(name):
    left = np.full((B, V), -np.inf, np.float32)
    left[:, : V // 2] = np.arange(V // 2) / 10
    values, gradient = ours(name, left, left[:, ::-1])
    np.testing.assert_allclose(values, {"jensen_shannon": np.log(2), "total_variation": 1.0}[name], rtol=RTOL)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("name", TEMPERED)
def test_the_largest_negative_number_as_a_mask(name):
    """finfo.min is how many models mask classes: both sides, or one alone, must not overflow into NaN."""
    student, teacher = (np.asarray(x, np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    lowest = np.finfo(np.float32).min
    both = [x.copy() for x in (student, teacher)]
    for array in both:
        array[:, 4] = lowest
    teacher[:, 9] = lowest
    for temperature in (0.5, 2.0):
        values, gradient = ours(name, *both, temperature)
        np.testing.assert_allclose(values, getattr(oracle, name)(*both, temperature), RTOL, ATOL)
        assert np.isfinite(gradient).all()
        values, gradient = ours(name, student, teacher, temperature)
        if name == "reverse_kl":  # finite, but of the order of 1e38
            assert (values > 1e35).all()
        else:
            np.testing.assert_allclose(values, getattr(oracle, name)(student, teacher, temperature), RTOL, ATOL)
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", TEMPERED)
def test_a_number_and_an_array_as_temperature_agree(name):
    student, teacher = (jnp.asarray(x, jnp.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    values, _ = ours(name, student, teacher, 3.0)
    for temperature in (3, 3.0, np.float32(3)):
        loss = getattr(losses, name)(student, teacher, temperature=temperature)
        np.testing.assert_allclose(loss, values, rtol=1e-6)


def test_gradient_does_not_fade_as_temperature_grows():
    """T² KL tends to half the variance of the logit difference, in the limit of Hinton et al., section 2.1."""
    student, teacher = (x.astype(np.float32) for x in pairs(np.random.default_rng(5))["moderate"])
    values, _ = ours("forward_kl", student, teacher, 1e4)
    np.testing.assert_allclose(values, np.var((student - teacher).astype(np.float64), axis=-1) / 2, rtol=1e-3)


def test_leading_axes_are_free():
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
    values = losses.forward_kl(student, teacher)
    assert values.shape == (2, 3)
    np.testing.assert_allclose(losses.forward_kl(student[1, 2], teacher[1, 2]), values[1, 2], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_bad_arguments_are_named(name):
    loss = getattr(losses, name)
    logits, other = jnp.zeros((2, 5)), jnp.zeros((2, 6))
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 6\).*vocabulary"):
        loss(logits, other)
    with pytest.raises(ValueError, match=r"same shape.*\(2, 5\) and \(1, 5\)"):
        loss(logits, logits[:1])
    with pytest.raises(ValueError, match=r"teacher_logits.*int32"):
        loss(logits, jnp.zeros((2, 5), jnp.int32))
    with pytest.raises(ValueError, match=r"\[\.\.\., classes\].*\(2, 0\)"):
        loss(jnp.zeros((2, 0)), jnp.zeros((2, 0)))
    with pytest.raises(ValueError, match=r"where must be bool.*int32"):
        loss(logits, logits, where=jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match=r"where.*\(2,\).*\(2, 5\)"):
        loss(logits, logits, where=jnp.ones((2, 5), bool))
    if name == "logit_mse":
        return
    for temperature in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature must be positive and finite, got {temperature}"):
            loss(logits, logits, temperature=temperature)
    with pytest.raises(ValueError, match=r"temperature must be a scalar.*\(2,\)"):
        loss(logits, logits, temperature=jnp.ones(2))
    with pytest.raises(ValueError, match=r"temperature must be a number.*'2'"):
        loss(logits, logits, temperature="2")


def test_beta_outside_its_range_is_an_error():
    logits = jnp.zeros((2, 5))
    for beta in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"beta must lie in \[0, 1\], got {beta}"):
            losses.jensen_shannon(logits, logits, beta=beta)
    with pytest.raises(ValueError, match="beta must be a plain number"):
        losses.jensen_shannon(logits, logits, beta=jnp.float32(0.5))


logit = st.floats(-30, 30, width=32, allow_subnormal=False)
rows = st.lists(st.tuples(logit, logit), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(rows=rows, temperature=st.sampled_from([0.25, 1.0, 4.0, 64.0]))
def test_any_logits_match_float64(rows, temperature):
    student, teacher = np.full((2, B, V), -np.inf, np.float32)  # one static shape: classes left over are absent
    student[:, : len(rows)], teacher[:, : len(rows)] = np.asarray(rows, np.float32).T[:, None, :]
    for name in TEMPERED:
        values, gradient = ours(name, student, teacher, temperature)
        expected, expected_gradient = truth(name, student, teacher, temperature)
        np.testing.assert_allclose(values, expected, RTOL, ATOL, err_msg=name)
        if name != "total_variation":  # its derivative jumps at ties
            assert_gradient(gradient, expected_gradient, atol=gradient_atol(name, temperature))
