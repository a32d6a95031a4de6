"""The launchers of scripts/launch: what every host runs, and what becomes of its exit status."""

from __future__ import annotations

import os
import re
import signal
import string
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch"
SCRIPTS = [LAUNCH / "slurm.sbatch", LAUNCH / "tpu_pod.sh"]
OVERRIDES = ["seed=1", "data.text=[a, 'b c']"]


@pytest.fixture
def commands(tmp_path):
    """A function that makes a command of a shell script, in a directory of its own at the head of PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def make(name: str, body: str) -> None:
        path = directory / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    make.environment = {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": str(tmp_path / "log"),
    }
    make.log = tmp_path / "log"
    # what it was started with, one argument a line, and the exit status asked for
    make("jaxdistill", 'printf "%s\\n" "$@" >> "$LOG"; exit "${STATUS:-0}"')
    return make


def run(script: Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The script run by bash with these variables only."""
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n# ")
    assert "\nset -euo pipefail\n" in text
    code = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in code if "`" in line.partition(" #")[0]]  # $(…) nests and is quoted, backticks do not
    assert not [
        line for line in code if re.search(r"(?<![\"\w])\$(@|\{\w+\[@\]\})", line)
    ]  # unquoted, it would be split
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_names_the_variable_that_is_missing(script, commands):
    missing = run(script, environment={**commands.environment, "TPU_NAME": "slice", "ZONE": "zone"})
    assert missing.returncode != 0
    assert "CONFIG: the YAML file of the run" in missing.stderr


def test_slurm_dry_run_prints_every_process_command(commands):
    environment = {**commands.environment, "DRY_RUN": "1", "CONFIG": "configs/my run.yaml", "SLURM_NTASKS": "2"}
    printed = run(SCRIPTS[0], *OVERRIDES, environment=environment).stdout.splitlines()
    assert printed == [
        rf"process {process}: jaxdistill run configs/my\ run.yaml seed=1 data.text=\[a\,\ \'b\ c\'\]"
        for process in range(2)
    ]
    assert not commands.log.exists()


def test_slurm_directives_agree_with_the_script():
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPTS[0].read_text(), flags=re.MULTILINE))
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]  # JAX takes one GPU a process under Slurm
    assert "requeue" in directives
    signal_name, seconds = directives["signal"].split("@")
    assert signal_name == "TERM"  # without B: it goes to the processes, which checkpoint
    assert 60 <= int(seconds) <= 65535


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (143, True)])
def test_slurm_requeues_what_was_checkpointed(commands, status, requeued):
    commands("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    commands("scontrol", 'echo "scontrol $*" >> "$LOG"')
    environment = {**commands.environment, "CONFIG": "run.yaml", "SLURM_JOB_ID": "7", "STATUS": str(status)}
    assert run(SCRIPTS[0], *OVERRIDES, environment=environment).returncode == status
    expected = ["run", "run.yaml", *OVERRIDES] + ["scontrol requeue 7"] * requeued
    assert commands.log.read_text().splitlines() == expected


def test_slurm_leaves_a_cancelled_job_to_slurm(commands):
    """Slurm's own SIGTERM reaches the script too: it waits for the processes to checkpoint, and requeues nothing."""
    commands("srun", 'kill -TERM $PPID; sleep 0.2; echo saved >> "$LOG"; exit 143')
    commands("scontrol", 'echo "scontrol $*" >> "$LOG"')
    environment = {**commands.environment, "CONFIG": "run.yaml", "SLURM_JOB_ID": "7"}
    assert run(SCRIPTS[0], environment=environment).returncode == 143
    assert commands.log.read_text().splitlines() == ["saved"]


@pytest.fixture
def slice_environment(commands, tmp_path):
    """Variables for tpu_pod.sh, and a `gcloud` whose slice has one host: this one."""
    commands("gcloud", 'for last; do :; done; exec bash -c "${last#--command=}"')
    commands("sudo", 'exec "$@"')
    # a unit is the command itself, in the working directory asked for
    commands("systemd-run", 'cd "$HOME"; echo $$ > unit; while [[ $1 == --* ]]; do shift; done; exec "$@"')
    commands("systemctl", 'kill -TERM "$(cat "$HOME/unit")"')
    (tmp_path / "jaxdistill").mkdir()
    slice_of = {"TPU_NAME": "slice", "ZONE": "zone", "CONFIG": "run.yaml"}
    return {**commands.environment, **slice_of, "JAXDISTILL": "jaxdistill", "RESTART_SECONDS": "0"}


def test_tpu_dry_run_prints_the_hosts_command(slice_environment, commands):
    printed = run(SCRIPTS[1], *OVERRIDES, environment={**slice_environment, "DRY_RUN": "1"}).stdout
    where, _, command = printed.partition(": ")
    assert where == "every host of slice (zone)"
    assert not commands.log.exists()
    subprocess.run(["bash", "-c", command], env=slice_environment, check=True)  # and what it prints is what runs
    assert commands.log.read_text().splitlines() == ["run", "run.yaml", *OVERRIDES]


@pytest.mark.parametrize(("status", "starts"), [(0, 1), (2, 1), (3, 1), (143, 3)])
def test_tpu_continues_what_was_interrupted(slice_environment, commands, status, starts):
    environment = {**slice_environment, "STATUS": str(status), "RESTARTS": "2"}
    assert run(SCRIPTS[1], environment=environment).returncode == status
    assert commands.log.read_text().splitlines() == ["run", "run.yaml"] * starts


def test_tpu_interruption_reaches_the_hosts(slice_environment, commands):
    """Ctrl-C or SIGTERM here is SIGTERM there; the script waits until the run has saved, and does not restart it."""
    commands(
        "jaxdistill",
        'trap \'echo saved >> "$LOG"; exit 143\' TERM; echo started >> "$LOG"; while :; do sleep 0.05; done',
    )
    script = subprocess.Popen(["bash", str(SCRIPTS[1])], env=slice_environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not commands.log.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=30) == 143
    finally:
        script.kill()
    assert commands.log.read_text().splitlines() == ["started", "saved"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)  # as Kubernetes spells them


DNSLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Count = Annotated[int, Field(ge=1)]


class FailurePolicyRule(_Strict):
    """jobset.x-k8s.io/v1alpha2, FailurePolicyRule."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    on_job_failure_reasons: list[
        Literal[
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
        ]
    ]


class FailurePolicy(_Strict):
    """jobset.x-k8s.io/v1alpha2, FailurePolicy."""

    max_restarts: Annotated[int, Field(ge=0)]
    rules: list[FailurePolicyRule]


class PodFailurePolicyRule(_Strict):
    """batch/v1, PodFailurePolicyRule."""

    action: Literal["Ignore", "FailIndex", "FailJob", "Count"]
    on_pod_conditions: list[dict[Literal["type", "status"], str]] | None = None
    on_exit_codes: dict[Literal["containerName", "operator", "values"], Any] | None = None


class Container(_Strict):
    """v1, Container: the fields we use."""

    name: DNSLabel
    image: str
    command: list[str]
    ports: list[dict[Literal["containerPort"], Count]]
    resources: dict[Literal["limits"], dict[Literal["google.com/tpu"], Count]]
    volume_mounts: list[dict[Literal["name", "mountPath"], str]]


class PodSpec(_Strict):
    """v1, PodSpec: the fields we use."""

    restart_policy: Literal["Never"]  # a pod failure policy asks for it
    termination_grace_period_seconds: Count
    node_selector: dict[str, str]
    containers: list[Container]
    volumes: list[dict[str, Any]]


class PodTemplate(_Strict):
    """v1, PodTemplateSpec."""

    spec: PodSpec


class JobSpec(_Strict):
    """batch/v1, JobSpec: the fields we use."""

    completion_mode: Literal["Indexed"]
    parallelism: Count
    completions: Count
    backoff_limit: Annotated[int, Field(ge=0)]
    pod_failure_policy: dict[Literal["rules"], list[PodFailurePolicyRule]]
    template: PodTemplate


class JobTemplate(_Strict):
    """batch/v1, JobTemplateSpec."""

    spec: JobSpec


class ReplicatedJob(_Strict):
    """jobset.x-k8s.io/v1alpha2, ReplicatedJob."""

    name: DNSLabel
    replicas: Count
    template: JobTemplate


class JobSetSpec(_Strict):
    """jobset.x-k8s.io/v1alpha2, JobSetSpec."""

    failure_policy: FailurePolicy
    replicated_jobs: list[ReplicatedJob]


class Metadata(_Strict):
    """v1, ObjectMeta: the fields we use."""

    name: DNSLabel
    annotations: dict[str, str]


class JobSet(_Strict):
    """jobset.x-k8s.io/v1alpha2, JobSet."""

    api_version: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec


@pytest.fixture(scope="module")
def manifest() -> str:
    return (LAUNCH / "gke_jobset.yaml").read_text()


@pytest.fixture(scope="module")
def exported(manifest) -> dict[str, str]:
    """The variables that the manifest's own comment sets, as a shell would."""
    lines = [line.removeprefix("#   ") for line in manifest.splitlines() if line.startswith("#   export ")]
    environment = {"PATH": os.environ["PATH"]}
    printed = subprocess.run(
        ["bash", "-c", ";".join([*lines, "env -0"])], env=environment, capture_output=True, check=True
    )
    return dict(line.split("=", 1) for line in printed.stdout.decode().split("\0") if line)


@pytest.fixture(scope="module")
def job_set(manifest, exported) -> JobSet:
    """The manifest as `envsubst` and Kubernetes would read it; a variable that is not set raises KeyError."""
    return JobSet.model_validate(yaml.safe_load(string.Template(manifest).substitute(exported)))


def test_manifest_restarts_all_hosts_of_an_interrupted_run(job_set):
    (rule,) = job_set.spec.failure_policy.rules
    assert rule.action == "RestartJobSetAndIgnoreMaxRestarts"
    job = job_set.spec.replicated_jobs[0].template.spec
    assert job.backoff_limit == 0
    assert job.parallelism == job.completions == 16
    rules = job.pod_failure_policy["rules"]
    assert [rule.action for rule in rules] == ["FailJob", "FailJob"]  # whose reason is PodFailurePolicy
    (container,) = job.template.spec.containers
    assert rules[1].on_exit_codes == {"containerName": container.name, "operator": "In", "values": [143]}
    assert {volume["name"] for volume in job.template.spec.volumes} == {
        mount["name"] for mount in container.volume_mounts
    }
    assert job.template.spec.node_selector["cloud.google.com/gke-tpu-topology"] == "4x4x4"  # 16 hosts of 4 chips
    assert container.resources["limits"]["google.com/tpu"] * job.completions == 4 * 4 * 4


def test_manifest_starts_the_run_in_every_pod(job_set, commands):
    (container,) = job_set.spec.replicated_jobs[0].template.spec.template.spec.containers
    done = subprocess.run(container.command, env={**commands.environment, "STATUS": "143"}, check=False)
    assert done.returncode == 143  # the first process is the run: its status is the pod's, and signals go to it
    expected = ["run", "configs/quickstart.yaml", "output_dir=/runs/distil", "parallel.fsdp=-1"]
    assert commands.log.read_text().splitlines() == expected
