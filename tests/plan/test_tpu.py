"""Plans for TPUs that are not there, where their compiler is installed (the extra plan-tpu)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from jaxdistill.config import load_run
from jaxdistill.config.schema import ParallelConfig
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import host_share, make_mesh
from jaxdistill.plan import make_planning, open_target, plan_run

pytest.importorskip("libtpu")

SHAPE = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
CHAIN = """
name: tiny
data: {task: causal_lm, train: {hub: some/text, split: train}, max_length: 512}
parallel: {data: 1, fsdp: -1}
precision: {compute: bfloat16}
stages:
  - name: student
    teacher: {pretrained: some/model}
    student: {architecture: llama, hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 1,
              num_key_value_heads: 1, head_dim: 128, intermediate_size: 256}
    train: {steps: 10, batch_size: 16, warmup: 0, remat: full}
"""


@pytest.mark.parametrize(
    ("target", "sizes", "shares"),
    [
        ("v5e:4x4", {"data": 1, "fsdp": 16}, 4),
        ("v5e:4x4", {"data": 1, "fsdp": 4, "tensor": 4}, 2),
        ("v5p:4x4x4", {"data": 1, "fsdp": 64}, 16),
        ("v5p:16x16x16", {"data": 64, "fsdp": 64}, 1024),  # no side of the torus is 64
    ],
)
def test_every_host_reads_its_part_of_a_batch_on_a_torus(target, sizes, shares):
    """JAX lays a mesh along the wires, so that neighbours on it are chips of different hosts."""
    mesh = make_mesh(ParallelConfig(**sizes), devices=open_target(target).devices)
    assert host_share(mesh) == (0, shares)


def test_an_arrangement_that_there_is_not():
    with pytest.raises(ConfigError, match="v5e:3x5 is no arrangement of a v5e"):
        open_target("v5e:3x5")


def plan(directory, target, *overrides, **shape):
    (directory / "chain.yaml").write_text(CHAIN)
    (directory / "config.json").write_text(json.dumps(SHAPE | shape))
    made = make_planning(target, model_configs=[f"some/model={directory / 'config.json'}"], hlo_dir=directory)
    run = load_run(directory / "chain.yaml", overrides)
    (found,) = plan_run(run, replace(made, cache_dir=directory / "cache"), Console(quiet=True))
    return found


@pytest.mark.slow
def test_a_step_for_four_chips(tmp_path):
    found = plan(tmp_path, "v5e:2x2")
    assert found["fits"]
    assert found["logits_sized"] == []
    assert "unknown_loops" not in found["collectives"]
    assert found["collectives"]["over_bound"] < 1.2
    # half precision travels, and weights whole: nothing goes around a ring part by part
    assert found["collectives"]["bytes"].get("collective-permute", 0) < 0.1 * found["collectives"]["total"]
    assert "tpu_custom_call" in (tmp_path / "student.hlo").read_text()  # splash attention
    assert found["modelled"]["tokens_per_day"] > 0


@pytest.mark.slow
def test_a_step_that_does_not_fit(tmp_path):
    found = plan(tmp_path, "v5e:1x1", hidden_size=8192, intermediate_size=32768, num_hidden_layers=12)
    assert not found["fits"]
    assert found["memory"]["needed"] > found["memory"]["limit"] > 15 * 2**30
    assert found["memory"]["verdict"]
    assert "collectives" not in found
