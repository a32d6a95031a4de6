"""Several processes as one job: whether this is one, how they find each other, and which of them leads."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import jax

from jaxdistill.errors import ConfigError, ExternalError

_GRACE = 3600  # seconds; long enough to say what is wrong and end
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_ONE_A_NODE = re.compile(r"1(\(x\d+\))?(,1(\(x\d+\))?)*")


@dataclass(frozen=True)
class Cluster:
    """A job of several processes. What is None, JAX finds out by itself where the launcher is.

    Attributes:
      launcher: who started the processes.
      coordinator_address: HOST:PORT of the first process.
      num_processes: of the job.
      process_id: of this one, from 0.
      local_device_ids: devices of this machine that are this process's; None: JAX's choice.
    """

    launcher: str
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None


def start(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Join the other processes of this job, if there are any; nothing on a machine of one's own, or the second time.

    To be called before anything uses a JAX device. Slurm, TPU slices, GKE and Open MPI are recognised by their
    environment; the arguments, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, come before it: all of
    them, or those that are wrong.

    Args:
      coordinator_address: HOST:PORT of the first process, as every process reaches it.
      num_processes: of the job.
      process_id: of this one, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: what is given does not make a job.
      ExternalError: the other processes were not reached in time.
    """
    if jax.distributed.is_initialized():
        return
    cluster = detect(
        os.environ, coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id
    )
    if cluster is None:
        return
    try:
        _join(cluster, timeout)
    except (RuntimeError, ValueError, OSError) as error:
        if "must be called before" in str(error):
            raise  # a mistake of ours
        where = f" at {cluster.coordinator_address}" if cluster.coordinator_address else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExternalError(
            f"this process of a job ({cluster.launcher}) could not join the others{where}: {reason}; check that all "
            "of them were started and reach the first one, or say where it is: JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID"
        ) from error


def _join(cluster: Cluster, timeout: int) -> None:
    """`jax.distributed.initialize`, given up after `timeout` seconds: its own time-out ends the process in C++.

    Raises:
      TimeoutError: the others did not come.
    """
    # the training loop sees to SIGTERM, and restores the handler it finds, which must be Python's
    with suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                cluster.coordinator_address,
                cluster.num_processes,
                cluster.process_id,
                cluster.local_device_ids,
                initialization_timeout=timeout + _GRACE,
            )
        except Exception as error:  # a thread's own would be lost: the caller raises it
            failures.append(error)

    thread = threading.Thread(target=initialize, name="jax-distributed", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError(f"they did not all come within {timeout} s")
    if failures:
        raise failures[0]


def is_lead_host() -> bool:
    """Whether this process is the one that prints and writes what only one may; to be asked after `start`."""
    return jax.process_index() == 0


def detect(
    environ: Mapping[str, str],
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Cluster | None:
    """The job that the environment (and what is given besides) tells of; None: one process by itself.

    Raises:
      ConfigError: only a part of a job is given, or a number in it is none.
    """
    address = coordinator_address or environ.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number(environ, "JAX_NUM_PROCESSES") if num_processes is None else num_processes
    index = _number(environ, "JAX_PROCESS_ID") if process_id is None else process_id
    if address is None and count is None and index is None:
        return _launched(environ)
    if count is None:
        count = _first_number(environ, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    if count == 1:
        return None
    if index is None:
        index = _first_number(environ, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
    given = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": index}
    if absent := [name for name, value in given.items() if value is None]:
        raise ConfigError(f"{' and '.join(absent)}: missing, while the job's other variables are set; set all three")
    assert address is not None
    assert count is not None
    assert index is not None
    if not 0 <= index < count:
        raise ConfigError(f"JAX_PROCESS_ID: {index} of JAX_NUM_PROCESSES = {count}; expected 0 to {count - 1}")
    if ":" not in address:
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS: {address!r}; expected HOST:PORT of the first process")
    return Cluster("given", address, count, index, _devices_of_node(environ))


def _launched(environ: Mapping[str, str]) -> Cluster | None:
    """What the launchers' own variables tell; looks at nothing but them."""
    if all(name in environ for name in _SLURM) and (_number(environ, "SLURM_NTASKS") or 1) > 1:
        return Cluster("Slurm", local_device_ids=_devices_of_node(environ))
    if (_number(environ, "OMPI_COMM_WORLD_SIZE") or 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            raise ConfigError(
                "Open MPI 5 does not tell its processes where the first one is; set it for all of them: "
                "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT ..."
            )
        return Cluster("Open MPI")
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if "," in (hosts or "") or (_number(environ, "MEGASCALE_NUM_SLICES") or 1) > 1:
        return Cluster("TPU")
    # JAX sets the first on a TPU's machine, the second elsewhere; who else is on the slice, the metadata server tells
    if "TPU_ML_PLATFORM" in environ and "TPU_SKIP_MDS_QUERY" not in environ and hosts is None:
        return Cluster("TPU")
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ and hosts is None:
        return _kubernetes(environ)
    return None


def _kubernetes(environ: Mapping[str, str]) -> Cluster | None:
    """An indexed job, of how many pods only the cluster's API tells."""
    if importlib.util.find_spec("kubernetes") is not None:
        return Cluster("Kubernetes")
    index = environ["JOB_COMPLETION_INDEX"]
    if index == "0":
        return None
    raise ConfigError(
        f"this is pod {index} of an indexed Kubernetes job, which does not say how many there are; set "
        "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES in its manifest, or install jax[k8s]"
    )


def _devices_of_node(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs of the node where Slurm runs one process on each: left to itself, JAX would take the first alone."""
    gpus = _number(environ, "SLURM_GPUS_ON_NODE")
    one_a_node = _ONE_A_NODE.fullmatch(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return tuple(range(gpus)) if gpus and one_a_node else None


def _first_number(environ: Mapping[str, str], *names: str) -> int | None:
    return next((value for name in names if (value := _number(environ, name)) is not None), None)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """A variable's whole number; None if it is not set."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}: {text!r}; expected a whole number")
    return int(text)
