"""Freed memory is reused: the number of pages the kernel had to give shows it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from jaxdistill.host_memory import keep_freed_memory

PROGRAM = """
import resource, sys
from jaxdistill.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.outer(x[:1600], x) @ jnp.outer(x, x[:8]))[0])  # 64 MB of temporaries
x = jnp.ones(10000)
def pages(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages(5)
print(pages(20) // 20)
"""


def pages_per_step(argument: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "XLA_"))}
    run = [sys.executable, "-c", PROGRAM, argument]
    return int(subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns memory this way")
def test_a_step_that_repeats_reuses_its_memory():
    left = pages_per_step("leave")
    if left < 1000:
        pytest.skip("this system gives memory in huge pages already")
    assert pages_per_step("keep") < left / 2


def test_the_users_own_settings_win(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not keep_freed_memory()


RELEASE = """
from jaxdistill.host_memory import keep_freed_memory, release_freed_memory
assert keep_freed_memory()
import numpy as np
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [np.ones(2**20) for _ in range(16)]  # 128 MB
kept = np.ones(8)
del blocks
before = resident()
assert release_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_freed_memory_is_given_back_when_asked():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    run = [sys.executable, "-c", RELEASE]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100 * 2**20
