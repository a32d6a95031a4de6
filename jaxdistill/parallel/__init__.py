"""Devices and hosts: the mesh of a run, and how batches, parameters and replicated trees are laid out on it."""

from jaxdistill.parallel.compilation import compiler_options, use_compilation_cache
from jaxdistill.parallel.mesh import (
    AXES,
    batch_devices,
    batch_sharding,
    check_divisible,
    check_pmap,
    host_memory,
    host_share,
    make_mesh,
    place,
    put_batch,
    put_batches,
    replicate,
    replicated,
    stacked_sharding,
    whole_batches,
)
from jaxdistill.parallel.partial_scan import scan_first
from jaxdistill.parallel.rules import BATCH_AXES, Layout, constrain, mesh_in_context, partition_spec
from jaxdistill.parallel.target import target_count, target_device, tracing_for

__all__ = [
    "AXES",
    "BATCH_AXES",
    "Layout",
    "batch_devices",
    "batch_sharding",
    "check_divisible",
    "check_pmap",
    "compiler_options",
    "constrain",
    "host_memory",
    "host_share",
    "make_mesh",
    "mesh_in_context",
    "partition_spec",
    "place",
    "put_batch",
    "put_batches",
    "replicate",
    "replicated",
    "scan_first",
    "stacked_sharding",
    "target_count",
    "target_device",
    "tracing_for",
    "use_compilation_cache",
    "whole_batches",
]
