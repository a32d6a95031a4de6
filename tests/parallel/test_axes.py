"""Logical axes of every architecture's parameters, and which heads a mesh can share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sharded_training import bert, llama

from jaxdistill import models
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.errors import ConfigError
from jaxdistill.models.axes import logical_axes, param_shardings
from jaxdistill.models.lookup import lookup
from jaxdistill.parallel import make_mesh, partition_spec
from jaxdistill.parallel.rules import RULES

ENCODER = {"vocab_size": 64, "hidden_size": 16, "max_position_embeddings": 32}
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
ARCHITECTURES = {
    "bert": bert(),
    "roberta": bert(model_type="roberta", pad_token_id=1),
    "bert_hash": bert(model_type="bert_hash", projections=5),
    "distilbert": models.build(
        {"model_type": "distilbert", "vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32},
        task="classification",
        num_labels=2,
    ),
    "masked": models.build({"model_type": "bert", **ENCODER, **BLOCKS}, task="masked_lm"),
    "llama": llama(),
    "biases": llama(attention_bias=True, mlp_bias=True),
    "tied": llama(tie_word_embeddings=True),
    "mistral": llama(model_type="mistral"),
    "qwen2": llama(model_type="qwen2"),
    "qwen3": llama(model_type="qwen3", head_dim=8),
}
WHOLE = ("norm", "scale", "position", "token_type")


def mesh_of(data, fsdp, tensor):
    return make_mesh(ParallelConfig(data=data, fsdp=fsdp, tensor=tensor))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_a_name_for_each_axis(name):
    model = ARCHITECTURES[name]
    shapes = dict(jax.tree.leaves_with_path(models.parameter_shapes(model)))
    axes = dict(jax.tree.leaves_with_path(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple)))
    assert axes.keys() == shapes.keys()
    for path, names in axes.items():
        where = jax.tree_util.keystr(path, simple=True, separator=".")
        assert len(names) == shapes[path].ndim, where
        assert {name for name in names if name} <= RULES.keys()
        assert (names[0] == "layers") == (".layers." in where)
        # a matrix is shared, unless it is one of the small tables
        matrix = shapes[path].ndim - (names[0] == "layers") > 1
        assert any(RULES[name] for name in names if name) == matrix or where.endswith((*WHOLE, "bias")), where


@pytest.mark.parametrize("name", [pytest.param("bert", marks=[pytest.mark.slow, pytest.mark.long]), "tied"])
def test_drawing_into_a_layout_draws_the_same(name):
    model, key = ARCHITECTURES[name], jax.random.key(3)
    layout = param_shardings(model, mesh_of(1, 2, 2))
    drawn = models.init_placed(model, key, layout)
    jax.tree.map(np.testing.assert_array_equal, drawn, model.init(key))
    assert jax.tree.map(lambda leaf: leaf.sharding, drawn) == layout


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = mesh_of(1, 2, 4)
    assert partition_spec(("vocab", "embed"), (30522, 16), mesh) == PartitionSpec(None, "fsdp")
    assert partition_spec(("vocab", "embed"), (30524, 15), mesh) == PartitionSpec("tensor")
    assert partition_spec(("batch", None), (8, 4), mesh) == PartitionSpec("fsdp")
    assert partition_spec(("batch",), (8,), mesh_of(2, 2, 2)) == PartitionSpec(("data", "fsdp"))
    assert partition_spec(("embed", "mlp"), (8, 8), mesh, layout="tensor") == PartitionSpec(None, "tensor")
    with pytest.raises(ValueError, match="2 axis names"):
        partition_spec(("embed", "mlp"), (8,), mesh)


def test_fewer_key_heads_than_devices_are_whole_on_each():
    shardings = param_shardings(llama(), mesh_of(1, 2, 4))
    attention = shardings["decoder"]["layers"]["attention"]
    assert attention["query"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert attention["key"]["kernel"].spec == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(
    ("model", "tensor", "said"),
    [
        (llama(), 8, r"8 devices .* llama with num_attention_heads 4, num_key_value_heads 2; use one of 1, 2, 4$"),
        (llama(36, num_attention_heads=6, num_key_value_heads=3), 2, r"num_key_value_heads 3; use one of 1, 3, 6$"),
        (bert(num_attention_heads=3), 2, r"a bert with num_attention_heads 3; use one of 1, 3$"),
    ],
)
def test_heads_that_cannot_be_shared_are_refused(model, tensor, said):
    with pytest.raises(ConfigError, match=said):
        param_shardings(model, mesh_of(1, 1, tensor))
    param_shardings(model, mesh_of(1, 1, tensor), "replicated")


def test_layers_apart_lie_like_the_stack():
    model, mesh = llama(), mesh_of(2, 2, 2)
    params = models.unstack_layers(jax.jit(model.init)(jax.random.key(0)))
    apart = param_shardings(model, mesh, like=params)
    placed = jax.device_put(params, apart)
    stacked = param_shardings(model, mesh)["decoder"]["layers"]["gate"]["kernel"]
    assert placed["decoder"]["layers"][1]["gate"]["kernel"].sharding.spec == PartitionSpec(*stacked.spec[1:])


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (1, 1, 8), (8, 1, 1)])
@pytest.mark.parametrize("vocabulary", [48, 50])
def test_looking_up_in_a_spread_table_is_looking_up(sizes, vocabulary):
    mesh = mesh_of(*sizes)
    table = jax.random.normal(jax.random.key(0), (vocabulary, 16))
    ids = jax.random.randint(jax.random.key(1), (16, 4), -3, vocabulary + 3)
    weights = jax.random.normal(jax.random.key(2), (16, 4, 16))

    def loss(table):
        rows = lookup(table, ids, dtype=jnp.float32)
        return jnp.sum(rows * weights), rows

    def spread(table):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss, has_aux=True)(table)

    expected = jax.grad(loss, has_aux=True)(table)
    placed = jax.device_put(table, jax.NamedSharding(mesh, partition_spec(("vocab", "embed"), table.shape, mesh)))
    gradient, rows = jax.jit(spread)(placed)
    assert jnp.array_equal(rows, expected[1])
    assert jnp.allclose(gradient, expected[0], atol=1e-6)
