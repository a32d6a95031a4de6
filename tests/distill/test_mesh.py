"""The mesh and where batches go on it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxdistill.config.schema import ParallelConfig
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import check_divisible, make_mesh, put_batch, replicate


def test_by_default_every_device_is_data_parallel():
    mesh = make_mesh()
    assert mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_fewer_devices_are_the_first_ones():
    assert list(make_mesh(ParallelConfig(data=3)).devices.flat) == jax.devices()[:3]


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(data=9), r"needs 9 devices, 8 cpu device\(s\) found; write data: -1"),
        (ParallelConfig(data=0), r"parallel\.data: 0 devices; write -1"),
        (ParallelConfig(fsdp=3), r"8 devices cannot be divided by fsdp × tensor = 3 × 1"),  # pyright: ignore
    ],
)
def test_impossible_meshes_are_refused(parallel, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(parallel)


def test_a_batch_is_split_over_data_and_a_tree_is_whole_everywhere():
    mesh = make_mesh()
    batch = {"a": np.arange(16), "tokenizers": {"1": {"b": np.ones((16, 3))}}}
    placed = put_batch(batch, mesh)
    assert placed["a"].sharding.spec == PartitionSpec("data")
    assert [shard.data.shape for shard in placed["tokenizers"]["1"]["b"].addressable_shards] == [(2, 3)] * 8
    np.testing.assert_array_equal(placed["a"], batch["a"])
    assert replicate({"w": np.ones(3)}, mesh)["w"].sharding.is_fully_replicated


def test_a_batch_must_divide_evenly():
    mesh = make_mesh()
    check_divisible(32, mesh, accumulate=4)
    with pytest.raises(ConfigError, match=r"12 examples .* 8 data-parallel .* multiple of 8, such as 8 or 16"):
        put_batch({"a": np.zeros(12)}, mesh)
    with pytest.raises(ConfigError, match=r"multiple of 32, such as 32$"):
        check_divisible(16, mesh, accumulate=4)
