"""Targets: what may be written, and what is said of what may not."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from jaxdistill.errors import ConfigError
from jaxdistill.plan.request import make_planning
from jaxdistill.plan.targets import CHIPS, open_target, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5e:4x4", ("v5e", (4, 4))),
        ("V5P:2x2x1", ("v5p", (2, 2, 1))),
        ("v6e:1x1", ("v6e", (1, 1))),
        ("h100:8", ("h100", (8,))),
        ("a100:16", ("a100", (16,))),
        ("a100", ("a100", (1,))),
        ("cpu", ("cpu", (1,))),
        ("cpu:8", ("cpu", (8,))),
    ],
)
def test_what_may_be_written(text, expected):
    assert parse_target(text) == expected


@pytest.mark.parametrize("kind", CHIPS)
def test_examples_are_targets(kind):
    assert parse_target(f"{kind}:{CHIPS[kind].topology}")[0] == kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5x:4x4", r"no device is called 'v5x'; expected one of v5e:4x4, .*; did you mean 'v5[ep]'\?"),
        ("h10:8", "did you mean 'h100'"),
        ("v5e", "v5e takes ROWSxCOLUMNS of chips, such as v5e:4x4"),
        ("v5e:16", "v5e takes ROWSxCOLUMNS"),
        ("v5p:4x4", "v5p takes XxYxZ of chips, such as v5p:2x2x1"),
        ("h100:8x2", "h100 takes a number of devices"),
        ("h100:0", "h100 takes a number of devices"),
        ("h100:12", "whole hosts of 8"),
    ],
)
def test_what_may_not(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_target(text)


def test_simulated_cpus():
    target = open_target("cpu:8")
    assert [device.platform for device in target.devices] == ["cpu"] * 8
    assert "jax" in target.libraries


def test_more_simulated_cpus_than_jax_has_begun_with():
    assert len(jax.devices()) == 8
    with pytest.raises(ConfigError, match="JAX has begun with 8 CPU devices"):
        open_target("cpu:64")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="TPU's compiler is installed")
def test_without_the_compiler_for_tpus(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'jaxdistill\[plan-tpu\]'"):
        open_target("v5e:4x4")


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="CUDA's compiler is installed")
def test_without_the_compiler_for_gpus():
    with pytest.raises(ConfigError, match=r"pip install 'jaxdistill\[plan-cuda\]'"):
        open_target("h100:8")


def test_files_of_model_configurations_are_looked_for(tmp_path):
    with pytest.raises(ConfigError, match="expected ID=FILE"):
        make_planning("cpu", model_configs=["meta-llama/Llama-2-7b-hf"])
    with pytest.raises(ConfigError, match="no such file"):
        make_planning("cpu", model_configs=[f"some/model={tmp_path / 'config.json'}"])
