"""A chain small enough to train in seconds: a word-level vocabulary, sentences that say what they mean, tiny models."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxdistill.config import load_run
from jaxdistill.stages import Summary, execute
from jaxdistill.train import loop
from jaxdistill.train.checkpoint import load_params

GOOD = ["good", "great", "fine", "lovely", "superb", "charming"]
BAD = ["bad", "awful", "dull", "poor", "dreadful", "clumsy"]
PLAIN = ["the", "a", "film", "plot", "actor", "is", "was", "very", "and", "music", "scene", "story"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
KEYS = ["teacher", "assistant", "student/seed-3", "student/seed-1", "scratch"]
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def sentence(rng: np.random.Generator, label: int) -> str:
    words = [str(word) for word in rng.choice(PLAIN, rng.integers(3, 9))]
    for word in rng.choice(GOOD if label else BAD, rng.integers(1, 3)):
        words.insert(int(rng.integers(0, len(words) + 1)), str(word))
    return " ".join(words)


def write_csv(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for index in range(rows):
            writer.writerow([sentence(rng, index % 2), ["negative", "positive"][index % 2]])


def write_tokenizer(directory: Path) -> None:
    """A WordPiece tokenizer of `VOCABULARY`, in the files that BERT directories have."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}),
        encoding="utf-8",
    )


def chain_config(material: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """teacher → assistant → BertHash student with two seeds, and a control on labels alone."""
    train = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "log_every": 4}
    return {
        "name": "tiny",
        "output_dir": str(output),
        "data": {
            "train": {"path": str(material / "train.csv")},
            "validation": {"path": str(material / "dev.csv")},
            "test": {"path": str(material / "test.csv")},
            "text": ["sentence"],
            "max_length": 32,
        },
        "logging": {"tensorboard": False},
        "parallel": {"data": 1},
        "stages": [
            {
                "name": "teacher",
                "teacher": None,
                "student": {"pretrained": str(material / "encoder")},
                "train": {**train, "epochs": 12, "learning_rate": 5e-3},
                "checkpoint": {"every": 15},
            },
            {
                "name": "assistant",
                "student": {"architecture": "bert", **TINY, "warm_start": {"layers": "uniform", "embeddings": "copy"}},
                "train": train,
                "checkpoint": {"every": 7},
            },
            {
                "name": "student",
                "student": {
                    "architecture": "bert_hash",
                    "projections": 4,
                    **TINY,
                    "hidden_size": 12,
                    "warm_start": {"embeddings": "svd"},
                },
                "train": train,
                "checkpoint": {"every": 5},
                "repeat": {"seeds": [3, 1]},
            },
            {
                "name": "scratch",
                "teacher": None,
                "student": {"architecture": "bert_hash", "projections": 4, **TINY, "hidden_size": 12},
                "train": train,
            },
        ],
        **changes,
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def run(path: Path, *overrides: str, console: Console | None = None) -> Summary:
    """Execute a configuration file quietly."""
    return execute(load_run(path, overrides), console=console or Console(quiet=True))


def run_interrupted(path: Path, monkeypatch: pytest.MonkeyPatch, *, saves: int = 1) -> None:
    """Execute a configuration file until so many checkpoints have been written."""
    save, count = loop._Loop._save, 0

    def interrupted(self: Any) -> None:
        nonlocal count
        save(self)
        count += 1
        if count == saves:
            self.checkpoints.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path)


def final_params(output: Path, key: str):
    record = json.loads((output / "stages" / key / "stage.json").read_text())
    return load_params(output / "stages" / key / "checkpoints" / str(record["checkpoint"]))


def assert_same_params(left: Path, right: Path, keys: Sequence[str] = KEYS) -> None:
    for key in keys:
        a, b = final_params(left, key), final_params(right, key)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=key)
