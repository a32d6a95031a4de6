"""Decoders' files: shards, placement, other dtypes and names, tied heads; and what is refused."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from saved_models import rewrite, same
from tiny_decoders import SHAPE, VARIANTS
from tiny_encoders import jit

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models.convert.safetensors_io import Checkpoint

TABLE = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(directory, model, parameters) of a Qwen2 we wrote: biases, and a tied head."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    model = models.build(SHAPE | VARIANTS["qwen2"], task="causal_lm")
    params = jit(model.init)(jax.random.key(3))
    models.save_pretrained(model, params, directory)
    return directory, model, params


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved directory to change."""
    return shutil.copytree(saved[0], tmp_path / "copy")


def load(directory, **how):
    return models.from_pretrained(directory, task="causal_lm", **how)


def test_round_trip(saved):
    directory, model, params = saved
    reports = []
    loaded, back = load(directory, report=reports.append)
    assert loaded == model
    assert str(reports[0]) == ""
    same(params, back)


@pytest.mark.parametrize("limit", [1, 4000, 10**9])
def test_shards(saved, tmp_path, limit):
    """In shards of at most so many bytes (or one tensor); each tensor is read back from where the index says."""
    _, model, params = saved
    models.save_pretrained(model, params, tmp_path / "model", max_shard_bytes=limit)
    same(params, load(tmp_path / "model")[1])
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    if limit == 10**9:
        assert files == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == models.parameter_bytes(params)
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for name in files:
        tensors = load_file(tmp_path / "model" / name)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= limit


@pytest.mark.parametrize(("first", "second"), [(10**9, 4000), (4000, 10**9), (1, 4000)])
def test_weights_written_before_are_gone(saved, tmp_path, first, second):
    """A file beside what is ours stays; weights of another layout would be read in place of the new ones."""
    _, model, params = saved
    models.save_pretrained(model, params, tmp_path / "model", max_shard_bytes=first)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    zeros = jax.tree.map(jnp.zeros_like, params)
    models.save_pretrained(model, zeros, tmp_path / "model", max_shard_bytes=second)
    same(zeros, load(tmp_path / "model")[1])
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    read = Checkpoint(tmp_path / "model")
    held = [set(load_file(path)) for path in (tmp_path / "model").glob("*.safetensors")]
    assert sum(map(len, held)) == len(read.names)


def test_every_leaf_goes_straight_into_its_sharding(saved):
    directory, _, params = saved
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def shardings(shapes):
        """The first axis that its number divides over tensor, stacked layers' own axis never."""

        def place(path, leaf):
            spec = [None] * len(leaf.shape)
            start = 1 if "layers" in jax.tree_util.keystr(path) else 0
            axes = [i for i in range(start, len(spec)) if leaf.shape[i] % 4 == 0]
            if axes:
                spec[axes[0]] = "tensor"
            return NamedSharding(mesh, PartitionSpec(*spec))

        return jax.tree_util.tree_map_with_path(place, shapes)

    model, placed = load(directory, sharding=shardings)
    same(params, placed)
    jax.tree.map(lambda leaf, to: leaf.sharding == to or pytest.fail(str(leaf.sharding)), placed, shardings(placed))
    table = placed["embeddings"]["word"]
    assert table.sharding.spec == PartitionSpec("tensor", None)
    assert {shard.data.shape for shard in table.addressable_shards} == {(15, 16)}
    whole = load(directory, sharding=NamedSharding(mesh, PartitionSpec()))[1]
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole))
    parts = {"embeddings": NamedSharding(mesh, PartitionSpec("fsdp")), "decoder": None, "norm": None}
    parts |= {name: NamedSharding(mesh, PartitionSpec()) for name in ("decoder", "norm")}
    assert load(directory, sharding=parts)[1]["embeddings"]["word"].sharding.spec == PartitionSpec("fsdp")
    models.save_pretrained(model, placed, directory.parent / "again")
    same(params, load(directory.parent / "again")[1])


def test_host_memory_holds_one_leaf_at_a_time(tmp_path):
    """NumPy's own memory while 36 MB are saved and loaded: the largest leaf is 8.4 MB, the largest tensor 5.1 MB.

    A CPU device may keep an aligned leaf as its own array: what is still there at the end is the devices', not ours.
    """
    wide = {"vocab_size": 20000, "hidden_size": 64, "intermediate_size": 8192, "num_hidden_layers": 4}
    model = models.build(SHAPE | {"model_type": "llama"} | wide, task="causal_lm")
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), models.parameter_shapes(model))
    assert 35e6 < models.parameter_bytes(params) < 37e6

    def peak(work):
        tracemalloc.start()
        made = work()
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del made
        return most - kept

    assert peak(lambda: models.save_pretrained(model, params, tmp_path / "model", max_shard_bytes=6 * 10**6)) < 20e6
    load(tmp_path / "model")  # traces the model, which takes memory of its own
    assert peak(lambda: load(tmp_path / "model")) < 20e6


def test_parameters_in_bfloat16(saved):
    directory, _, params = saved
    model, halved = load(directory, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    same(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), halved)
    ids = np.arange(4, 12, dtype=np.int32)[None]
    exact, rounded = (jit(model.apply)(which, {"input_ids": ids})["logits"] for which in (params, halved))
    assert (rounded.dtype, rounded.shape) == (jnp.float32, exact.shape)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * float(np.abs(exact).max()))


def test_names_without_prefix_and_old_buffers(saved, copy):
    """As the base model's own files and older checkpoints have them."""
    buffer = {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    rewrite(copy, lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()} | buffer)
    reports = []
    same(saved[2], load(copy, report=reports.append)[1])
    assert str(reports[0]) == ""


def test_a_tied_head_may_be_stored_or_alone(saved, copy):
    rewrite(copy, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE]})
    reports = []
    same(saved[2], load(copy, report=reports.append)[1])
    assert str(reports[0]) == ""
    rewrite(copy, lambda tensors: {name: value for name, value in tensors.items() if name != TABLE})
    same(saved[2], load(copy)[1])


def test_a_stored_head_that_is_not_the_table_it_is_tied_to(copy):
    rewrite(copy, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE] + 1})
    with pytest.raises(ModelError, match=r"tie_word_embeddings is true, but lm_head\.weight is not model\.embed"):
        load(copy)


def test_a_missing_head_is_never_made_up(copy):
    """A classifier may be new; a language model without its head is a mistake."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ModelError, match=r"missing: lm_head\.weight"):
        load(copy)


def test_every_mismatch_is_listed_at_once(copy):
    config = json.loads((copy / "config.json").read_text())
    changed = {"intermediate_size": 48, "num_key_value_heads": 4, "vocab_size": 61}
    (copy / "config.json").write_text(json.dumps(config | changed))
    reports = []
    with pytest.raises(ModelError) as error:
        load(copy, report=reports.append)
    for name in (
        "model.embed_tokens.weight: [60, 16] in the checkpoint, [61, 16] in the model",
        "model.layers.0.self_attn.k_proj.weight: [8, 16] in the checkpoint, [16, 16] in the model",
        "model.layers.1.self_attn.v_proj.bias: [8] in the checkpoint, [16] in the model",
        "model.layers.1.mlp.down_proj.weight: [16, 40]",
    ):
        assert name in str(error.value)
    assert len(reports[0].mismatched) == 1 + 2 * (4 + 3)


def test_weights_of_another_architecture(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    with pytest.raises(ModelError, match=r"missing: .*q_norm"):
        load(copy)


def test_a_decoder_is_no_classifier(copy):
    with pytest.raises(ModelError, match="decoders are built for causal_lm"):
        models.from_pretrained(copy)
