"""Devices that are not there: what `--target` may say, and the compile-only devices it means.

Peak rates are the vendors' data sheets' (dense bfloat16; interconnect of one device, one direction, all links), memory
is what a program can have of a device: they are compared with and modelled from, and never measured here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxdistill.config.problems import did_you_mean
from jaxdistill.errors import ConfigError, ExternalError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of device: bytes, FLOP/s and bytes/s. `topology` is an example of what follows the colon."""

    platform: Literal["tpu", "cuda", "cpu"]
    title: str
    topology: str
    memory: int | None = None
    flops: float | None = None
    memory_bandwidth: float | None = None
    interconnect: float | None = None
    dimensions: int = 1
    remark: str = ""


# What XLA has of a GPU is what the driver leaves, of which JAX takes three quarters unless told otherwise.
_OF_GPU = 0.92
_GPU_REMARK = (
    f"the limit is {_OF_GPU} of the card (XLA_PYTHON_CLIENT_MEM_FRACTION; JAX's default is 0.75). Decoders' attention "
    "is planned as XLA's own, for these packages cannot compile cuDNN's; it takes more memory than a run's"
)

CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("tpu", "TPU v5e", "4x4", int(15.75 * GIB), 197e12, 819e9, 180e9, 2),
    "v5p": Chip("tpu", "TPU v5p", "2x2x1", int(95.74 * GIB), 459e12, 2765e9, 540e9, 3),
    "v6e": Chip("tpu", "TPU v6e", "4x4", int(31.25 * GIB), 918e12, 1640e9, 360e9, 2),
    "h100": Chip("cuda", "H100 SXM 80 GB", "8", int(_OF_GPU * 85e9), 989e12, 3350e9, 450e9, remark=_GPU_REMARK),
    "a100": Chip("cuda", "A100 SXM 80 GB", "8", int(_OF_GPU * 85e9), 312e12, 2039e9, 300e9, remark=_GPU_REMARK),
    "cpu": Chip("cpu", "CPU", "1"),
}

# Of the GpuTargetConfigProto that XLA is told: limits of the two architectures, from NVIDIA's programming guide.
_GPUS = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "cores": 132,
        "fpus": 128,
        "bandwidth": 3352320000000,
        "l2": 52428800,
        "clock": 1.98,
        "memory": 84942979072,
        "shared_core": 233472,
        "shared_block": 232448,
        "capability": "major: 9 feature_extension: ACCELERATED_FEATURES",
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "cores": 108,
        "fpus": 64,
        "bandwidth": 2039040000000,
        "l2": 41943040,
        "clock": 1.41,
        "memory": 85100068864,
        "shared_core": 167936,
        "shared_block": 166912,
        "capability": "major: 8 feature_extension: NONE",
    },
}
_GPU_TEXT = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared_core} shared_memory_per_block_optin: {shared_block}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock} l2_cache_size: {l2}
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  cuda_compute_capability {{ {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


@dataclass(frozen=True)
class Target:
    """Devices of one kind, attached to nothing; `libraries` are the versions of what compiles for them."""

    text: str
    chip: Chip
    devices: tuple[Any, ...]
    libraries: Mapping[str, str]


def parse_target(text: str) -> tuple[str, tuple[int, ...]]:
    """A target's kind of device and how they are arranged.

    Raises:
      ConfigError: an unknown kind, or an arrangement that it cannot have.
    """
    kind, _, arrangement = text.strip().lower().partition(":")
    if kind not in CHIPS:
        known = ", ".join(f"{name}:{chip.topology}" if name != "cpu" else name for name, chip in CHIPS.items())
        raise ConfigError(f"--target: no device is called {kind!r}; expected one of {known}{did_you_mean(kind, CHIPS)}")
    chip = CHIPS[kind]
    arrangement = arrangement or ("1" if chip.platform != "tpu" else "")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", arrangement) or arrangement.count("x") + 1 != chip.dimensions:
        what = {1: "a number of devices", 2: "ROWSxCOLUMNS of chips", 3: "XxYxZ of chips"}[chip.dimensions]
        raise ConfigError(f"--target: got {text!r}; {kind} takes {what}, such as {kind}:{chip.topology}")
    sizes = tuple(map(int, arrangement.split("x")))
    if chip.platform == "cuda" and sizes[0] > 8 and sizes[0] % 8:
        raise ConfigError(f"--target: got {text!r}; more than 8 GPUs are whole hosts of 8, such as {kind}:16")
    return kind, sizes


def open_target(text: str) -> Target:
    """The target's devices, which nothing runs on.

    JAX's own backend becomes the CPU if it is not chosen yet: a plan is made beside the machine, not on it.

    Raises:
      ConfigError: an unknown target, or one whose compiler is not installed.
      ExternalError: its compiler failed to describe it.
    """
    kind, sizes = parse_target(text)
    chip = CHIPS[kind]
    libraries = {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")}
    if chip.platform == "cpu":
        return Target(f"cpu:{sizes[0]}", chip, _cpus(sizes[0]), libraries)
    _stay_on_cpu()
    canonical = f"{kind}:{'x'.join(map(str, sizes))}"
    find = _tpus if chip.platform == "tpu" else _gpus
    devices, library = find(canonical, kind, sizes)
    return Target(canonical, chip, tuple(devices), libraries | library)


def _stay_on_cpu() -> None:
    settings: Any = jax.config  # its flags are made at run time, unknown to type checkers
    if not settings.jax_platforms:
        jax.config.update("jax_platforms", "cpu")


def _cpus(count: int) -> tuple[Any, ...]:
    """Simulated where there are more than one."""
    settings: Any = jax.config
    if settings.jax_num_cpu_devices < count:
        with suppress(RuntimeError):  # JAX has begun with another number
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(
            f"--target: cpu:{count}, but JAX has begun with {len(devices)} CPU devices; set JAX_NUM_CPU_DEVICES={count}"
        )
    return tuple(devices[:count])


def _tpus(text: str, kind: str, sizes: Sequence[int]) -> tuple[Sequence[Any], dict[str, str]]:
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ConfigError(
            f"--target: {text} needs TPU's compiler, which is not installed; pip install 'jaxdistill[plan-tpu]'"
        )
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
    try:
        topology = topologies.get_topology_desc(topology_name=text, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:  # XLA has no other class: its text tells who is wrong
        reason = str(error).strip().partition("\n")[0]
        if "INVALID_ARGUMENT" in reason:
            raise ConfigError(
                f"--target: {text} is no arrangement of a {kind} ({reason}); e.g. {CHIPS[kind].topology}"
            ) from error
        raise ExternalError(f"--target: {text}: TPU's compiler did not start ({reason})") from error
    return topology.devices, {"libtpu": _version("libtpu")}


def _gpus(text: str, kind: str, sizes: Sequence[int]) -> tuple[Sequence[Any], dict[str, str]]:
    from jax.experimental import topologies

    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError(
            f"--target: {text} needs CUDA's compiler, which is not installed; pip install 'jaxdistill[plan-cuda]'"
        )
    hosts = max(1, sizes[0] // 8)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=_GPU_TEXT.format(**_GPUS[kind]),
            topology=f"1x{hosts}x{sizes[0] // hosts}",
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:  # the latter: XLA's UNIMPLEMENTED, by JAX
        reason = str(error).strip().partition("\n")[0]
        raise ExternalError(f"--target: {text}: CUDA's compiler did not start ({reason})") from error
    return topology.devices, {"jax-cuda13-plugin": _version("jax-cuda13-plugin")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
