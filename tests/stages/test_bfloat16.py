"""A whole run that computes in bfloat16: parameters, checkpoints and exports stay float32, and it goes on bitwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_chain import chain_config, final_params, run, write_config

pytestmark = [pytest.mark.slow, pytest.mark.long]

STAGES = ("teacher", "assistant", "scratch")


def losses(output: Path, stage: str) -> list[float]:
    """The training losses that were logged."""
    lines = (output / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if entry["kind"] == "train"]


def short(material: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The tiny chain without its repeated stage: pretrained teacher, warm-started assistant, BertHash on labels."""
    config = chain_config(material, output, **changes)
    config["stages"] = [stage for stage in config["stages"] if stage["name"] in STAGES]
    config["stages"][0]["train"]["epochs"] = 3
    return config


@pytest.fixture(scope="module")
def half(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the short chain computed in bfloat16."""
    output = tmp_path_factory.mktemp("half") / "run"
    run(write_config(output.parent / "tiny.yaml", short(material, output, precision={"compute": "bfloat16"})))
    return output


def test_losses_are_finite_and_those_of_bfloat16(half: Path, material: Path, tmp_path: Path):
    for stage in STAGES:
        assert np.isfinite(losses(half, stage)).all()
    config = short(material, tmp_path / "single")
    config["stages"] = config["stages"][:1]
    run(write_config(tmp_path / "tiny.yaml", config))
    exact, rounded = losses(tmp_path / "single", "teacher"), losses(half, "teacher")
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_the_exported_student_is_float32_and_loads(half: Path, stage: str):
    torch = pytest.importorskip("torch")
    import transformers

    directory = half / "stages" / stage / "student"
    assert {tensor.dtype for tensor in load_file(directory / "model.safetensors").values()} == {np.dtype(np.float32)}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(final_params(half, stage)))
    model, found = transformers.AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not found["missing_keys"]
    assert model.dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        logits = model(**tokenizer(["the film is good", "a dull plot"], padding=True, return_tensors="pt")).logits
    assert torch.isfinite(logits).all()


def test_an_interrupted_stage_goes_on_bitwise(half: Path, material: Path, tmp_path: Path):
    output = tmp_path / "run"
    shutil.copytree(half, output)
    stage = output / "stages" / "assistant"
    (stage / "stage.json").unlink()
    steps = sorted(int(path.name) for path in (stage / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(stage / "checkpoints" / str(steps[-1]))
    run(write_config(tmp_path / "tiny.yaml", short(material, output, precision={"compute": "bfloat16"})))
    jax.tree.map(np.testing.assert_array_equal, final_params(output, "assistant"), final_params(half, "assistant"))
