"""Devices and hosts: the mesh of a run, and how batches, parameters and replicated trees are laid out on it."""

from jaxdistill.parallel.compilation import use_compilation_cache
from jaxdistill.parallel.mesh import (
    AXES,
    BATCH_AXES,
    batch_devices,
    batch_sharding,
    check_divisible,
    check_pmap,
    host_share,
    make_mesh,
    place,
    put_batch,
    replicate,
    replicated,
    whole_batches,
)
from jaxdistill.parallel.rules import Layout, constrain, partition_spec

__all__ = [
    "AXES",
    "BATCH_AXES",
    "Layout",
    "batch_devices",
    "batch_sharding",
    "check_divisible",
    "check_pmap",
    "constrain",
    "host_share",
    "make_mesh",
    "partition_spec",
    "place",
    "put_batch",
    "replicate",
    "replicated",
    "use_compilation_cache",
    "whole_batches",
]
