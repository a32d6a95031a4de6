"""The configuration that names hub ids, with small stand-ins laid out as the hub's client keeps what it downloaded.

Nothing of ours is replaced: the same ids are resolved, in a cache that holds each model's own shape and peculiarities
(vocab.txt alone, pretraining heads, a factorised table without prefix or classifier) and a vocabulary of 29 words.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file
from tiny_chain import sentence, write_tokenizer

from jaxdistill import models
from jaxdistill.config import build_chain, load_run
from jaxdistill.stages.prepare import Preparation

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "configs" / "sst2_progressive.yaml"
LARGE, MINI, TINY, FEMTO = (
    "assemblyai/bert-large-uncased-sst2",
    "google/bert_uncased_L-4_H-256_A-4",
    "google/bert_uncased_L-2_H-128_A-2",
    "neuml/bert-hash-femto",
)


def shape(layers: int, width: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    """A config.json as Google wrote BERT's."""
    return {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 512,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": 2,
        "vocab_size": 30522,
        **more,
    }


HASHED = {"model_type": "bert_hash", "projections": 5, "auto_map": {"AutoModel": "modeling_bert_hash.BertHashModel"}}
SHAPES = {
    LARGE: shape(24, 1024, 16, 4096, model_type="bert", architectures=["BertForSequenceClassification"]),
    MINI: shape(4, 256, 4, 1024, model_type="bert"),
    TINY: shape(2, 128, 2, 512, model_type="bert"),
    FEMTO: shape(2, 50, 2, 200, **HASHED),
}
SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}


def lay_out(cache: Path, hub_id: str, config: dict[str, Any]) -> Path:
    """The snapshot directory of a model in the client's cache, with configuration and tokenizer."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = cache / f"models--{hub_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    write_tokenizer(snapshot)
    if hub_id.startswith("google/"):  # they have the vocabulary alone
        (snapshot / "tokenizer.json").unlink()
        (snapshot / "tokenizer_config.json").unlink()
    (snapshot / "config.json").write_text(json.dumps(config))
    return snapshot


def write_weights(snapshot: Path, hub_id: str) -> None:
    """Random weights of the snapshot's configuration, under the names that such checkpoints have."""
    config = (snapshot / "config.json").read_text()
    model = models.build(json.loads(config), task="classification" if hub_id in (LARGE, FEMTO) else "masked_lm")
    params = jax.jit(model.init)(jax.random.key(len(hub_id)))
    models.save_pretrained(model, params, snapshot, factorised=hub_id == FEMTO)
    (snapshot / "config.json").write_text(config)
    path = snapshot / "model.safetensors"
    tensors = load_file(path)
    if hub_id in (MINI, TINY):
        width = model.config.hidden_size
        tensors["cls.seq_relationship.weight"] = np.zeros((2, width), np.float32)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    if hub_id == FEMTO:
        body = {name for name in tensors if not name.startswith(("bert.pooler", "classifier"))}
        tensors = {name.removeprefix("bert."): tensors[name] for name in body}
    save_file(tensors, path)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put local rows, labelled 0 and 1 as GLUE's, in the place of the hub's data set."""
    directory = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("test", 24)):
        with (directory / f"{split}.tsv").open("w", newline="", encoding="utf-8") as file:
            table = [(sentence(rng, index % 2), index % 2) for index in range(count)]
            csv.writer(file, delimiter="\t").writerows([("sentence", "label"), *table])
    return [f"data.{split}={{path: {directory / f'{split}.tsv'}}}" for split in ("train", "test")]


def test_shapes_and_parameter_counts(rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The published ids resolve to the published sizes, 11.17M, 4.39M and 243K, before any weight is read."""
    import huggingface_hub.constants
    from safetensors.numpy import save_file

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for hub_id, config in SHAPES.items():
        save_file({"unread": np.zeros(1, np.float32)}, lay_out(tmp_path, hub_id, config) / "model.safetensors")
    surveys = Preparation(build_chain(load_run(CONFIG, rows)), Console(quiet=True)).survey()
    assert {survey.stage.key: survey.parameters for survey in surveys} == {
        "mini": 11_171_074,
        "tiny": 4_386_178,
        "femto": 242_662,
        "femto_direct": 242_662,
        "femto_labels": 242_662,
    }
    teacher = models.config_from_hf(models.resolve(LARGE))
    assert models.parameter_count(models.parameter_shapes(models.build(teacher))) == 335_143_938


@pytest.mark.long
@pytest.mark.slow
def test_the_published_chain_runs(rows: list[str], tmp_path: Path):
    """All five stages with shrunken models, in a process of its own that finds them under their hub ids."""
    cache, output = tmp_path / "hub", tmp_path / "run"
    for hub_id, config in SHAPES.items():
        write_weights(lay_out(cache, hub_id, config | SMALL), hub_id)
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "JAXDISTILL_CACHE": str(tmp_path / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".jax_cache"),
    }
    overrides = [*rows, *(f"stages.{index}.train.epochs=1" for index in range(5)), "logging.tensorboard=false"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxdistill", "run", str(CONFIG), "--json", "--output-dir", str(output), *overrides],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout)["stages"]
    assert [(row["name"], row["teacher"]) for row in summary] == [
        (LARGE, None),
        ("mini", [LARGE]),
        ("tiny", ["mini"]),
        ("femto", ["tiny"]),
        ("femto_direct", [LARGE]),
        ("femto_labels", None),
    ]
    assert all(np.isfinite(row["eval"]["test"]["loss"]) for row in summary)
    for row in summary[1:]:  # a factorised student leaves as the BERT it equals
        exported = json.loads((output / "stages" / row["key"] / "student" / "config.json").read_text())
        assert (exported["model_type"], exported["hidden_size"]) == ("bert", 8)
