"""Warm-start surgery: layers picked, tables factorised."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_encoders import BERT_SHAPE, jit

from jaxdistill import models
from jaxdistill.errors import ModelError


@pytest.fixture(scope="module")
def params():
    model = models.build(BERT_SHAPE | {"model_type": "bert", "num_hidden_layers": 4})
    return jit(model.init)(jax.random.key(0))


def test_layers_in_the_order_given(params):
    layers = params["encoder"]["layers"]
    chosen = models.select_layers(params, [3, 0])
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, np.stack([old[3], old[0]])), chosen, layers)


@pytest.mark.parametrize("indices", [[4], [-1], []])
def test_layers_that_do_not_exist(params, indices):
    with pytest.raises(ModelError, match="layers 0 to 3"):
        models.select_layers(params, indices)


def test_svd_is_the_best_approximation_of_its_rank():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(300, 12)) * np.geomspace(3, 0.1, 12) + rng.normal(size=12)).astype(np.float32)
    left, right, mean = models.svd_factorise(table, 5)
    assert left.shape == (300, 5)
    assert right.shape == (5, 12)
    np.testing.assert_allclose(left.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-5)
    centred = table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)
    singular = np.linalg.svd(centred, compute_uv=False)
    best = np.sqrt((singular[5:] ** 2).sum())
    np.testing.assert_allclose(np.linalg.norm(left @ right + mean - table), best, rtol=1e-4)
    whole = models.svd_factorise(table, 12)
    np.testing.assert_allclose(whole[0] @ whole[1] + whole[2], table, atol=1e-4)


@pytest.mark.parametrize("width", [0, 13])
def test_svd_width_out_of_range(width):
    with pytest.raises(ModelError, match="1 to 12"):
        models.svd_factorise(np.zeros((20, 12), np.float32), width)
