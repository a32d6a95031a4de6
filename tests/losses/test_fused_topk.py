"""The fused loss against a stored teacher: the dense `top_k_forward_kl`, without logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_examples import T, assert_same, random_example, value_and_gradients
from jax.sharding import PartitionSpec as P
from scipy.special import logsumexp

from jaxdistill import losses

K = 4
WEIGHTS = {"kd_weight": 0.7, "ce_weight": 0.3, "z_weight": 0.01}


def stored(example, count=K):
    teacher = example.logits()[1]
    ids = np.argsort(-teacher, axis=-1)[:, :count].astype(np.int32)
    kept = np.take_along_axis(teacher, ids, axis=-1).astype(np.float32)
    return losses.TopK(ids, kept, logsumexp(teacher / T, axis=-1).astype(np.float32))


def dense(example, kept):
    student = example.student_hidden @ example.student_head
    counted = example.labels != -100
    kd = losses.top_k_forward_kl(student, *kept, temperature=T, where=counted)
    ce = losses.cross_entropy(student, example.labels)
    z = losses.z_loss(student, where=counted)
    count = jnp.sum(counted, dtype=jnp.int32).astype(jnp.float32)
    sums = {"kd": kd.sum(), "ce": ce.sum(), "z": z.sum(), "count": count}
    return sum(WEIGHTS[f"{name}_weight"] * sums[name] for name in ("kd", "ce", "z")), sums


def fused(example, kept, **options):
    without = (example.student_hidden, example.student_head, None, None, example.labels)
    return losses.fused_linear_distillation(*without, top_k=kept, temperature=T, **WEIGHTS, **options)


@pytest.mark.parametrize("count", [K, 17])
def test_it_is_the_dense_loss_on_stored_classes(count):
    example = random_example()
    kept = stored(example, count)
    expected = value_and_gradients(dense)(example, kept)
    got = value_and_gradients(functools.partial(fused, chunk_size=5))(example, kept)
    assert_same(got, expected, rtol=3e-6)


@pytest.mark.slow
def test_all_classes_stored_teach_what_the_teacher_does():
    example = random_example()
    online = value_and_gradients(lambda e: losses.fused_linear_distillation(*e, temperature=T, **WEIGHTS))(example)
    assert_same(value_and_gradients(fused)(example, stored(example, 17)), online, rtol=5e-6)


def test_a_vocabulary_over_four_devices():
    example = random_example(classes=16)
    mesh = jax.make_mesh((4,), ("vocab",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    head = P(None, "vocab")
    local = functools.partial(fused, axis_name="vocab", vocab_size=15)
    specs = (type(example)(P(), head, P(), P(), P()), losses.TopK(P(), P(), P()))
    spread = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    whole = example._replace(teacher_head=example.teacher_head[:, :15])
    kept = stored(whole)
    expected = value_and_gradients(functools.partial(fused, vocab_size=15))(example, kept)
    assert_same(value_and_gradients(spread)(example, kept), expected, rtol=3e-6)


def test_nothing_behind_an_excluded_token_has_an_effect():
    example = random_example()
    excluded = example.labels == -100
    kept = stored(example)
    spoilt = losses.TopK(
        np.where(excluded[:, None], 10**6, kept.ids),
        np.where(excluded[:, None], np.nan, kept.logits).astype(np.float32),
        np.where(excluded, np.nan, kept.log_normalizer).astype(np.float32),
    )
    both = value_and_gradients(fused)
    assert_same(both(example, spoilt), both(example, kept), rtol=0)


def test_a_class_that_is_none_is_not_silent():
    example = random_example()
    kept = stored(example)
    loss, _ = fused(example, kept._replace(ids=np.full_like(kept.ids, 17)))
    assert np.isnan(loss)


def test_only_forward_kl_is_known_from_what_is_stored():
    example = random_example()
    with pytest.raises(ValueError, match="must be 'forward_kl' with top_k"):
        fused(example, stored(example), divergence="reverse_kl")
