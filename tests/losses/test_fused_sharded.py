"""The fused loss with its vocabulary spread over devices, against one device."""

from __future__ import annotations

import re

import jax
import loss_oracle as oracle
import numpy as np
import pytest
from fused_examples import (
    DIVERGENCES,
    Example,
    T,
    assert_close,
    assert_same,
    close_example,
    fused,
    random_example,
    to_parameters,
    truth,
    value_and_gradients,
)
from jax.sharding import Mesh, PartitionSpec

WHOLE, ON_TENSOR, ON_DATA = PartitionSpec(), PartitionSpec(None, "tensor"), PartitionSpec("data")
SPECS = Example(WHOLE, ON_TENSOR, WHOLE, ON_TENSOR, WHOLE)


def tensor_mesh(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("tensor",))


def sharded(devices, *, check_vma=True, **options):
    """(loss, metrics) of an example whose heads are spread over devices."""
    return jax.shard_map(
        lambda example: fused(example, axis_name="tensor", **options),
        mesh=tensor_mesh(devices),
        in_specs=(SPECS,),
        out_specs=WHOLE,
        check_vma=check_vma,
    )


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equals_one_device(divergence, devices):
    example = random_example(classes=24)
    options = {"divergence": divergence, "chunk_size": 4}
    expected = value_and_gradients(lambda e: fused(e, **options))(example)
    # With and without JAX's own account of what varies over devices, which decides how gradients are added up.
    run = value_and_gradients(sharded(devices, check_vma=devices == 2, **options))
    assert_same(run(example), expected)


def test_gradients_taken_inside():
    example = random_example(classes=24)

    def local(student_hidden, student_head, rest):
        def loss(*student):
            return fused(Example(*student, *rest), axis_name="tensor", chunk_size=4)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(student_hidden, student_head)

    specs = (WHOLE, (WHOLE, ON_TENSOR))
    run = jax.jit(jax.shard_map(local, mesh=tensor_mesh(4), in_specs=(*SPECS[:2], SPECS[2:]), out_specs=specs))
    expected = value_and_gradients(lambda e: fused(e, chunk_size=4))(example)
    assert_same(run(*example[:2], example[2:]), expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nearly_equal_models(divergence):
    """What one shard's share of the mass differs by between the models is as small as everything else."""
    example = close_example(shift=9.0)
    run = value_and_gradients(sharded(4, divergence=divergence, chunk_size=3, ce_weight=0.0, z_weight=0.0))
    (_, metrics), gradients = run(example)
    _, sums, _ = truth(example, divergence=divergence, close=True)
    np.testing.assert_allclose(metrics["kd"], sums["kd"], rtol=1e-5 if divergence == "jensen_shannon" else 3e-6)
    to_logits = 0.7 * oracle.GRADIENTS[divergence](*example.logits(), T)
    sizes = to_parameters(example._replace(**{k: np.abs(v) for k, v in example._asdict().items()}), np.abs(to_logits))
    for gradient, parameter, size in zip(gradients, to_parameters(example, to_logits), sizes, strict=True):
        np.testing.assert_array_less(np.abs(np.asarray(gradient, np.float64) - parameter), 1e-5 * size + 1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_models_far_apart_keep_their_mass_in_different_shards(divergence):
    example = random_example(classes=24)
    far = example._replace(student_head=example.student_head * 20, teacher_head=example.teacher_head * 20)
    (loss, _), gradients = value_and_gradients(sharded(4, divergence=divergence, chunk_size=5))(far)
    expected, _, to_logits = truth(far, divergence=divergence)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for gradient, parameter in zip(gradients, to_parameters(far, to_logits), strict=True):
        assert_close(gradient, parameter, 2e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_padding_up_to_a_shard_without_any_class(divergence):
    """17 classes over four devices of 6 columns: five are left on the third, none on the fourth."""
    example = random_example(classes=17)
    padded = example._replace(
        student_head=np.pad(example.student_head, ((0, 0), (0, 7)), constant_values=3.0),
        teacher_head=np.pad(example.teacher_head, ((0, 0), (0, 7)), constant_values=-2.0),
    )
    options = {"divergence": divergence, "chunk_size": 4}
    (loss, metrics), (to_hidden, to_head) = value_and_gradients(sharded(4, vocab_size=17, **options))(padded)
    expected = value_and_gradients(lambda e: fused(e, **options))(example)
    assert_same(((loss, metrics), (to_hidden, to_head[:, :17])), expected)
    np.testing.assert_array_equal(to_head[:, 17:], 0)


def test_several_teachers():
    example, second = random_example(classes=24), random_example(classes=24, teacher_width=9, seed=1)
    lists = example._replace(
        teacher_hidden=[example.teacher_hidden, second.teacher_hidden],
        teacher_head=[example.teacher_head, second.teacher_head],
    )
    options = {"teacher_weights": [1.0, 3.0], "chunk_size": 4}
    expected = value_and_gradients(lambda e: fused(e, **options))(lists)
    assert_same(value_and_gradients(sharded(4, **options))(lists), expected, 2e-6)


def test_tokens_over_one_axis_and_classes_over_another():
    """As a training step runs it: each device's sum over its tokens, added up and divided by the global count."""
    example = random_example(tokens=12, classes=24)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))

    def local(example):
        loss, metrics = fused(example, axis_name="tensor", chunk_size=4)
        loss, metrics = jax.lax.psum((loss, metrics), "data")
        return loss / metrics["count"], metrics

    specs = Example(ON_DATA, ON_TENSOR, ON_DATA, ON_TENSOR, ON_DATA)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=WHOLE)

    def whole(example):
        loss, metrics = fused(example)
        return loss / metrics["count"], metrics

    assert_same(value_and_gradients(mapped)(example), value_and_gradients(whole)(example))


def test_differently_padded_shards_are_an_error():
    example = random_example(classes=24)
    with pytest.raises(ValueError, match=r"same vocabulary, got \[12, 10\] columns.*before spreading"):
        sharded(2, vocab_size=20)(example._replace(teacher_head=example.teacher_head[:, :20]))


def test_only_numbers_per_token_and_one_gradient_cross_devices():
    tokens, classes, width, devices = 48, 40, 6, 4
    example = random_example(tokens, classes, width, 5)
    run = value_and_gradients(sharded(devices, divergence="jensen_shannon", chunk_size=16))
    text = run.lower(example).compile().as_text()
    sizes = collectives(text)
    assert sizes
    # Seven numbers for the divergence, three for the labels, and Jensen–Shannon's second round of one and two.
    assert max(sizes["all-gather"]) <= 16 * 7 * devices
    assert sum(sizes["all-gather"]) <= 16 * 13 * devices
    assert sorted(sizes["all-reduce"])[-1] == tokens * width
    assert sum(size > 8 for size in sizes["all-reduce"]) == 1
    assert set(sizes) == {"all-gather", "all-reduce"}


def collectives(text):
    """The elements of every collective's result, by kind."""
    found = {}
    pattern = r"= (\(?[^=]*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        sizes = [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", shapes)]
        found.setdefault(kind, []).append(max(sizes))
    return found
