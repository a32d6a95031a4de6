"""Devices: the mesh a run uses and how batches and replicated trees are placed on it."""

from jaxdistill.parallel.mesh import BATCH, batch_sharding, check_divisible, make_mesh, put_batch, replicate, replicated

__all__ = ["BATCH", "batch_sharding", "check_divisible", "make_mesh", "put_batch", "replicate", "replicated"]
