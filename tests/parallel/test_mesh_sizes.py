"""Which meshes can be made of the devices, and what a batch must divide by."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdistill.config.schema import ParallelConfig
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import check_divisible, host_share, make_mesh, place, put_batch, replicated, whole_batches


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({"fsdp": -1, "data": 1}, (1, 8, 1)),
        ({"tensor": -1, "data": 2}, (2, 1, 4)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 2, "tensor": 2}, (1, 2, 2)),
    ],
)
def test_one_axis_may_take_what_the_others_leave(asked, sizes):
    mesh = make_mesh(ParallelConfig(**asked))
    assert tuple(mesh.shape.values()) == sizes
    assert [device.id for device in mesh.devices.flat] == [device.id for device in jax.devices()[: mesh.size]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fsdp": -1}, r"data and fsdp are -1 at the same time"),
        ({"fsdp": -1, "tensor": -1}, r"data and fsdp and tensor are -1 at the same time"),
        ({"data": 2, "fsdp": 0}, r"parallel\.fsdp: 0 devices"),
        ({"data": 2, "fsdp": 2, "tensor": 4}, r"2 × 2 × 4 needs 16 devices, 8 cpu"),
        ({"data": 3, "fsdp": -1}, r"8 devices cannot be divided by data × tensor = 3 × 1"),
        ({"strategy": "pmap", "fsdp": 2}, r"pmap splits batches only, but fsdp × tensor = 2 × 1"),
    ],
)
def test_impossible_sizes_are_refused(asked, said):
    with pytest.raises(ConfigError, match=said):
        make_mesh(ParallelConfig(**asked))


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    placed = put_batch({"a": np.arange(8)}, mesh)["a"]
    assert placed.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert [shard.data.tolist() for shard in placed.addressable_shards[::2]] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert whole_batches(6, mesh) == 8
    assert host_share(mesh) == (0, 1)
    with pytest.raises(ConfigError, match=r"12 examples .* 4 data-parallel .* × 2 .* multiple of 8, such as 8 or 16"):
        check_divisible(12, mesh, accumulate=2)


def test_what_is_placed_already_is_not_copied():
    mesh = make_mesh()
    tree = place({"w": np.ones((8, 2)), "key": jax.random.key(3)}, replicated(mesh))
    again = place(tree, replicated(mesh))
    assert (
        again["w"].addressable_data(0).unsafe_buffer_pointer() == tree["w"].addressable_data(0).unsafe_buffer_pointer()
    )
