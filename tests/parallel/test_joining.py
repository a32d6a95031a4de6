"""Whether a process is one of several, told from environments as the launchers make them."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys

import pytest

from jaxdistill.errors import ConfigError
from jaxdistill.parallel.distributed import Cluster, detect

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_GPUS_ON_NODE": "8",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (dict(os.environ), None),
        (SLURM, Cluster("Slurm")),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (without(SLURM, "SLURM_STEP_NODELIST"), None),  # a batch script itself, before srun
        (
            SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
            Cluster("Slurm", local_device_ids=tuple(range(8))),
        ),
        (OPEN_MPI, Cluster("Open MPI")),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Cluster("TPU")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, Cluster("TPU")),
        ({"TPU_ML_PLATFORM": "JAX"}, Cluster("TPU")),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        (GIVEN, Cluster("given", "10.0.0.1:1234", 4, 2)),
        (SLURM | GIVEN, Cluster("given", "10.0.0.1:1234", 4, 2)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "h:1"}, Cluster("given", "h:1", 16, 3)),
        (OPEN_MPI | {"JAX_COORDINATOR_ADDRESS": "h:1"}, Cluster("given", "h:1", 2, 1)),
        (POD | without(GIVEN, "JAX_PROCESS_ID"), Cluster("given", "10.0.0.1:1234", 4, 0)),
        ({"JAX_NUM_PROCESSES": "1"}, None),
    ],
)
def test_the_environment_tells(environ, expected):
    assert detect(environ) == expected


def test_arguments_come_first():
    assert detect(SLURM | GIVEN, coordinator_address="h:9", num_processes=2, process_id=0) == Cluster(
        "given", "h:9", 2, 0
    )
    assert detect(GIVEN, num_processes=1) is None


def test_a_pod_that_does_not_know_the_others():
    if importlib.util.find_spec("kubernetes") is not None:
        pytest.skip("with the kubernetes package JAX asks the cluster itself, and there is none here")
    assert detect(POD) is None
    with pytest.raises(ConfigError, match=r"pod 3 of an indexed Kubernetes job.* JAX_NUM_PROCESSES"):
        detect(POD | {"JOB_COMPLETION_INDEX": "3"})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (without(GIVEN, "JAX_COORDINATOR_ADDRESS"), r"^JAX_COORDINATOR_ADDRESS: missing"),
        (without(GIVEN, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), r"^JAX_NUM_PROCESSES and JAX_PROCESS_ID: missing"),
        (GIVEN | {"JAX_PROCESS_ID": "4"}, r"JAX_PROCESS_ID: 4 of JAX_NUM_PROCESSES = 4; expected 0 to 3"),
        (GIVEN | {"JAX_NUM_PROCESSES": "many"}, r"JAX_NUM_PROCESSES: 'many'; expected a whole number"),
        (GIVEN | {"JAX_COORDINATOR_ADDRESS": "host"}, r"'host'; expected HOST:PORT"),
        (without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"), r"Open MPI 5 .* mpirun -x JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_half_a_job_is_refused(environ, said):
    with pytest.raises(ConfigError, match=said):
        detect(environ)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_the_others_do_not_come(process):
    """One clear line and an exit status of our own, whether it is the first process that waits or another."""
    script = (
        "import sys\n"
        "from jaxdistill.errors import ExternalError\n"
        "from jaxdistill.parallel.distributed import start\n"
        "try:\n"
        "    start(timeout=2)\n"
        "except ExternalError as error:\n"
        "    print(error)\n"
        "    sys.exit(error.exit_status)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)}
    environ = {**os.environ, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 4, done.stderr
    assert f"could not join the others at 127.0.0.1:{port}: they did not all come within 2 s" in done.stdout
