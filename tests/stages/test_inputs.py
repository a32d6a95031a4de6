"""What a run reads: tokenizers, weights and labels that are missing are found before anything is loaded or trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console
from tiny_chain import chain_config, write_config

from jaxdistill.config import build_chain, load_run
from jaxdistill.errors import JaxdistillError
from jaxdistill.stages.prepare import Preparation


def problem(directory: Path, raw: dict[str, Any]) -> str:
    """What the survey of a configuration says is wrong."""

    def survey() -> None:
        chain = build_chain(load_run(write_config(directory / "chain.yaml", raw)))
        Preparation(chain, Console(quiet=True)).survey()

    with pytest.raises(JaxdistillError) as error:
        survey()
    return str(error.value)


def test_a_pretrained_student_without_any_tokenizer(material: Path, tmp_path: Path) -> None:
    shutil.copytree(material / "encoder", tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    raw = chain_config(material, tmp_path / "run")
    raw["stages"][0]["student"] = {"pretrained": str(tmp_path / "bare")}
    assert "tokenizer: no teacher or pretrained student brings one; write tokenizer:" in problem(tmp_path, raw)


def test_the_last_stage_s_weights_are_missed_before_the_first_is_trained(material: Path, tmp_path: Path) -> None:
    shutil.copytree(material / "encoder", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    raw = chain_config(material, tmp_path / "run")
    raw["stages"][-1]["student"] = {"pretrained": str(tmp_path / "pickled")}
    line = problem(tmp_path, raw)
    assert "pickled: no model.safetensors; it has only pytorch_model.bin" in line
    assert "convert it once" in line


def test_one_class_is_no_classification(material: Path, tmp_path: Path) -> None:
    raw = chain_config(material, tmp_path / "run")
    raw["data"]["train"] = {"path": str(tmp_path / "one.csv")}
    (tmp_path / "one.csv").write_text("sentence,label\n" + "a good film,0\n" * 4)
    assert "one.csv: every label in column 'label' is '0'; expected two classes or more" in problem(tmp_path, raw)


def test_a_decoder_is_no_student_of_these_stages(material: Path, tmp_path: Path) -> None:
    from jaxdistill import models

    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    model = models.build({"model_type": "llama", "vocab_size": 32, **shape}, task="causal_lm")
    models.save_pretrained(model, model.init(jax.random.key(0)), tmp_path / "llama")
    raw = chain_config(material, tmp_path / "run")
    raw["stages"][-1]["student"] = {"pretrained": str(tmp_path / "llama")}
    assert "llama is a decoder, and data.task classification needs an encoder" in problem(tmp_path, raw)
