"""Devices: the mesh a run uses and how batches and replicated trees are placed on it."""

from jaxdistill.parallel.compilation import use_compilation_cache
from jaxdistill.parallel.mesh import (
    BATCH,
    batch_sharding,
    check_divisible,
    make_mesh,
    put_batch,
    replicate,
    replicated,
    whole_batches,
)

__all__ = [
    "BATCH",
    "batch_sharding",
    "check_divisible",
    "make_mesh",
    "put_batch",
    "replicate",
    "replicated",
    "use_compilation_cache",
    "whole_batches",
]
