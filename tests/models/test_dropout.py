"""Dropout masks: uniform, independent, and a matter of key, example, place and position alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import BERT_SHAPE, batch, jit, pad

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models.dropout import Site, dropout, example_seeds

KEY = jax.random.key(11)
SEEDS = example_seeds(KEY, jnp.arange(64, dtype=jnp.int32))


def kept(shape=(64, 32, 128), *, seeds=SEEDS, rate=0.1, site=Site.FEED_FORWARD, layer=0):
    return np.asarray(dropout(jnp.ones(shape), seeds, rate=rate, site=site, layer=layer)) > 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_scale(rate):
    dropped = np.asarray(dropout(jnp.ones((64, 32, 128)), SEEDS, rate=rate, site=Site.EMBEDDINGS))
    values = np.unique(dropped)
    np.testing.assert_allclose(values, [0, 1 / (1 - rate)], rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs((dropped == 0).mean() - rate) < 4 * deviation
    for axis in ((1, 2), (0, 2), (0, 1)):  # no example, position or channel is special
        share = (dropped == 0).mean(axis=axis)
        assert np.abs(share - rate).max() < 5 * deviation * np.sqrt(share.size)


def correlation(a, b):
    """Correlation of two masks in standard errors."""
    a, b = a - a.mean(), b - b.mean()
    return abs((a * b).mean() / (a.std() * b.std())) * np.sqrt(a.size)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_independent_of_every_neighbour(rate):
    mask = kept(rate=rate).astype(np.float64)
    above = np.triu_indices(32, 1)
    neighbours = {
        "example": (mask[1:], mask[:-1]),
        "position": (mask[:, 1:], mask[:, :-1]),
        "channel": (mask[:, :, 1:], mask[:, :, :-1]),
        "channel + 2": (mask[:, :, 2:], mask[:, :, :-2]),
        "transposed": (mask[:, above[0], above[1]], mask[:, above[1], above[0]]),
        "layer": (mask, kept(rate=rate, layer=1)),
        "site": (mask, kept(rate=rate, site=Site.ATTENTION_OUTPUT)),
        "layer and site": (mask, kept(rate=rate, layer=2, site=Site.EMBEDDINGS)),
        "key": (mask, kept(rate=rate, seeds=example_seeds(jax.random.key(12), jnp.arange(64, dtype=jnp.int32)))),
    }
    assert {name: correlation(*pair) for name, pair in neighbours.items() if not correlation(*pair) < 4.5} == {}


def test_pairs_of_channels_fall_as_independent_coins():
    """Chi-squared over the 16 patterns of four neighbouring channels."""
    mask = kept(rate=0.5)
    patterns = sum(mask[:, :, i::4].astype(int) << i for i in range(4))
    counts = np.bincount(patterns.ravel(), minlength=16)
    expected = patterns.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # 99.9 % of chi-squared with 15 degrees of freedom


def test_gradient_uses_the_same_mask():
    x = jax.random.normal(jax.random.key(0), (4, 6, 10))
    gradient = jax.grad(lambda x: jnp.sum(dropout(x, SEEDS[:4], rate=0.3, site=Site.POOLER)))(x)
    np.testing.assert_array_equal(gradient, dropout(jnp.ones_like(x), SEEDS[:4], rate=0.3, site=Site.POOLER))


def test_mask_of_a_part_is_the_part_of_the_mask():
    """Fewer examples, positions or channels: the coordinates decide, not the shape."""
    whole = kept()
    np.testing.assert_array_equal(whole[5:9, :7, :13], kept((4, 7, 13), seeds=SEEDS[5:9]))
    attention = kept((64, 2, 16, 16), site=Site.ATTENTION)
    np.testing.assert_array_equal(attention[:, :, :9, :9], kept((64, 2, 9, 9), site=Site.ATTENTION))


def test_nothing_is_drawn_without_seeds_or_rate():
    x = jnp.ones((2, 3))
    assert dropout(x, None, rate=0.5, site=Site.POOLER) is x
    assert dropout(x, SEEDS[:2], rate=0.0, site=Site.POOLER) is x


# --- in the model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """(compiled logits and gradient with dropout, parameters)"""
    config = BERT_SHAPE | {"model_type": "bert", "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model = models.build(config)

    def logits(params, of, key):
        return model.apply(params, of, key=key)["logits"]

    return jit(logits), jit(model.init)(jax.random.key(0))


def test_changes_with_the_key_and_the_example(model):
    logits, params = model
    of = batch(size=4)
    same = {name: np.repeat(value[:1], 4, axis=0) for name, value in of.items()} | {"example_id": of["example_id"]}
    out = logits(params, same, KEY)
    assert len(np.unique(np.asarray(out)[:, 0])) == 4  # one text, four examples: four masks
    np.testing.assert_array_equal(out, logits(params, same, KEY))
    assert not np.allclose(out, logits(params, same, jax.random.key(12)))


def test_mean_over_masks_is_near_the_whole(model):
    """Inverted dropout keeps the expectation of what is linear; here just that masks do what they say, not nothing."""
    logits, params = model
    of = batch(size=4)
    out = np.stack([logits(params, of, jax.random.key(i)) for i in range(50)])
    assert (out.std(axis=0) > 1e-3).all()


def test_same_for_micro_batches_padding_and_order(model):
    logits, params = model
    of = batch(size=8)
    whole = logits(params, of, KEY)
    halves = [logits(params, {name: value[i : i + 4] for name, value in of.items()}, KEY) for i in (0, 4)]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-6)
    np.testing.assert_allclose(logits(params, pad(of, 20), KEY), whole, atol=1e-6)
    order = np.random.default_rng(0).permutation(8)
    shuffled = logits(params, {name: value[order] for name, value in of.items()}, KEY)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-6)


def test_same_on_eight_devices(model):
    logits, params = model
    of = batch(size=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    out = logits(params, jax.device_put(of, split), KEY)
    assert len(out.sharding.device_set) == 8
    np.testing.assert_allclose(out, logits(params, of, KEY), atol=1e-6)


def test_needs_example_id(model):
    _, params = model
    of = batch()
    del of["example_id"]
    built = models.build(BERT_SHAPE | {"model_type": "bert"})
    with pytest.raises(ModelError, match="example_id"):
        built.apply(params, of, key=KEY)
