"""Every loss under every transform, against the plain call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdistill import losses

B, V, D = 16, 7, 5
ON_DATA = PartitionSpec("data")


def per_position(student, teacher, labels, where):
    """One sum of all the losses: transforms act alike on all of them."""
    total = losses.cross_entropy(student, labels, label_smoothing=0.1, where=where)
    total += losses.logit_mse(student, teacher, where=where)
    total += losses.total_variation(student, teacher, temperature=2.0, where=where)
    total += losses.ensemble_forward_kl(student, [teacher, -teacher], temperature=2.0, where=where)
    for name in ("forward_kl", "reverse_kl", "jensen_shannon", "soft_cross_entropy"):
        total += getattr(losses, name)(student, teacher, temperature=2.0, where=where)
    return total


def other_losses(student, teacher, labels, where):
    """The sum of the rest, those of attention on rows of one head and two tokens made of the first four classes."""
    total = losses.skewed_kl(student, teacher, skew=0.2, temperature=2.0, where=where)
    total += losses.taid(student, teacher, progress=0.3, where=where)
    total += losses.dkd(student, teacher, labels, target_weight=1.0, other_weight=2.0, where=where)
    total += losses.forward_kl(student, losses.most_confident_logits([teacher, -teacher]), where=where)
    total += losses.z_loss(student, where=where)
    for name in ("hidden_state_mse", "embedding_mse", "cosine_distance", "patient_loss"):
        total += getattr(losses, name)(student, teacher, where=where)
    tokens = jnp.stack([where, where], axis=-1)
    pair = [logits[..., :4].reshape(*where.shape, 2, 2) for logits in (student, teacher)]
    values = losses.relation_kl(*pair, num_relation_heads=1, where=tokens)
    for name in ("attention_kl", "attention_mse"):
        values += getattr(losses, name)(*(scores[..., None, :, :] for scores in pair), where=tokens)
    return total + jnp.sum(values, axis=-1)


def mean_loss(weights, features, teacher, labels, where, axis_name=None, of=per_position):
    return losses.masked_mean(of(features @ weights, teacher, labels, where), where, axis_name=axis_name)


@pytest.fixture(scope="module")
def inputs():
    """Weights and a batch whose mask is spread unevenly over devices, one of which has nothing to count."""
    rng = np.random.default_rng(0)
    weights, features, teacher = (rng.normal(size=s).astype(np.float32) for s in ((D, V), (B, D), (B, V)))
    where = rng.random(B) < 0.6
    where[:2], where[2:4] = False, True
    teacher[:2] = np.nan
    return weights, (features, teacher, rng.integers(0, V, B).astype(np.int32), where)


@pytest.fixture(scope="module")
def whole(inputs):
    weights, batch = inputs
    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(weights, *batch)
    assert np.isfinite(gradient).all()
    return loss, gradient


def assert_whole(loss, gradient, whole):
    np.testing.assert_allclose(loss, np.broadcast_to(whole[0], np.shape(loss)), rtol=1e-6)
    np.testing.assert_allclose(gradient, whole[1], rtol=1e-5, atol=1e-6)


def by_device(batch):
    return [array.reshape(8, B // 8, *array.shape[1:]) for array in batch]


def test_pmap_over_eight_devices(inputs, whole):
    weights, batch = inputs

    def step(weights, *batch):
        loss, gradient = jax.value_and_grad(mean_loss)(weights, *batch, "data")
        return loss, jax.lax.pmean(gradient, "data")  # see masked_mean's note

    loss, gradients = jax.pmap(step, axis_name="data", in_axes=(None, 0, 0, 0, 0))(weights, *by_device(batch))
    assert loss.shape == (8,)
    for gradient in gradients:
        assert_whole(loss, gradient, whole)


@pytest.mark.parametrize("inside", [True, False], ids=["grad-inside", "grad-outside"])
def test_shard_map_over_eight_devices(inputs, whole, inside):
    weights, batch = inputs
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def local(weights, *batch):
        return mean_loss(weights, *batch, "data")

    specs = (PartitionSpec(), ON_DATA, ON_DATA, ON_DATA, ON_DATA)
    function = jax.value_and_grad(local) if inside else local
    outputs = (PartitionSpec(), PartitionSpec()) if inside else PartitionSpec()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=outputs)
    loss, gradient = jax.jit(mapped if inside else jax.value_and_grad(mapped))(weights, *batch)
    assert_whole(loss, gradient, whole)


@pytest.mark.slow
@pytest.mark.long
def test_the_other_losses_over_eight_devices(inputs):
    """Each device's gradient by pmap, shard_map and vmap, which are parts of the whole's; and over devices its mean."""
    weights, batch = inputs
    step = jax.value_and_grad(lambda *arguments: mean_loss(*arguments, "data", other_losses))
    whole = jax.jit(jax.value_and_grad(lambda *arguments: mean_loss(*arguments, of=other_losses)))(weights, *batch)

    def averaged(*arguments):
        loss, gradient = step(*arguments)
        return loss, jax.lax.pmean(gradient, "data")

    for spread in (jax.pmap, jax.vmap):
        losses_, gradients = spread(averaged, axis_name="data", in_axes=(None, 0, 0, 0, 0))(weights, *by_device(batch))
        for gradient in gradients:
            assert_whole(losses_, gradient, whole)
    specs = (PartitionSpec(), ON_DATA, ON_DATA, ON_DATA, ON_DATA)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec(), PartitionSpec()))
    assert_whole(*jax.jit(mapped)(weights, *batch), whole)


def test_vmap_over_an_axis_name_and_without(inputs, whole):
    weights, batch = inputs
    spread = jax.vmap(lambda *b: mean_loss(weights, *b, "data"), axis_name="data")
    np.testing.assert_allclose(jax.jit(spread)(*by_device(batch)), np.full(8, whole[0]), rtol=1e-6)
    features, teacher, labels, where = batch
    together = jax.jit(per_position)(features @ weights, teacher, labels, where)
    one_by_one = jax.jit(jax.vmap(per_position))(features @ weights, teacher, labels, where)
    np.testing.assert_allclose(one_by_one, together, rtol=1e-6)


def test_scan_over_micro_batches_equals_the_whole(inputs, whole):
    weights, batch = inputs

    def sums(weights, batch):
        features, teacher, labels, where = batch
        return losses.masked_sum_count(per_position(features @ weights, teacher, labels, where), where)

    def add(carry, batch):
        (total, count), gradient = jax.value_and_grad(sums, has_aux=True)(weights, batch)
        return jax.tree.map(jnp.add, carry, (total, count, gradient)), None

    start = (jnp.float32(0), jnp.float32(0), jnp.zeros_like(weights))
    (total, count, gradient), _ = jax.jit(lambda b: jax.lax.scan(add, start, b))(tuple(by_device(batch)))
    assert_whole(total / count, gradient / count, whole)


def test_forward_mode_equals_reverse_mode(inputs):
    weights, (features, teacher, labels, where) = inputs
    arguments = (teacher, labels, where)
    student = features @ weights
    forward = jax.jit(jax.jacfwd(lambda s: per_position(s, *arguments).sum()))(student)
    reverse = jax.jit(jax.grad(lambda s: per_position(s, *arguments).sum()))(student)
    np.testing.assert_allclose(forward, reverse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_second_derivatives(name):
    """Of forward KL it is diag(q) − q·qᵀ; all three by differences of the first derivative."""
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(2, V)).astype(np.float32)
    student[2] = teacher[2] = -np.inf  # an absent class must not spoil them
    gradient = jax.jit(jax.grad(lambda s: getattr(losses, name)(s, teacher)))
    hessian = jax.jit(jax.jacfwd(gradient))(student)
    steps = 1e-2 * np.eye(V, dtype=np.float32)
    differences = np.stack([np.asarray(gradient(student + h)) - np.asarray(gradient(student - h)) for h in steps])
    np.testing.assert_allclose(hessian, differences / 2e-2, atol=2e-4)
    if name == "forward_kl":
        q = np.asarray(jax.nn.softmax(student))
        np.testing.assert_allclose(hessian, np.diag(q) - np.outer(q, q), atol=1e-6)
