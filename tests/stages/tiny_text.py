"""A chain of tiny language models on text in which every word says what may follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"w{index}" for index in range(40)]
SPECIAL = ["<pad>", "<eos>", "<unk>"]
SHAPE = {
    "architecture": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def write_text(path: Path, documents: int, seed: int) -> None:
    """Documents of 5 to 30 words; each word is followed by one of three."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(documents):
        word, words = int(rng.integers(len(WORDS))), []
        for _ in range(int(rng.integers(5, 31))):
            words.append(WORDS[word])
            word = (3 * word + int(rng.integers(3))) % len(WORDS)
        lines.append(" ".join(words))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_word_tokenizer(directory: Path, words: list[str] | None = None) -> None:
    """One token a word, and `<eos>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *(words or WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}), encoding="utf-8")


def text_config(directory: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A teacher on labels alone, and a student of it."""
    train = {"batch_size": 8, "learning_rate": 2e-2, "weight_decay": 0.1, "b2": 0.95, "log_every": 5}
    return {
        "name": "tiny-text",
        "output_dir": str(output),
        "tokenizer": str(directory / "tokenizer"),
        "data": {
            "task": "causal_lm",
            "train": {"path": str(directory / "train.txt")},
            "validation": {"path": str(directory / "validation.txt")},
            "test": {"path": str(directory / "test.txt")},
            "sample_by": "line",
            "max_length": 32,
        },
        "logging": {"tensorboard": False},
        "parallel": {"data": 1},
        "stages": [
            {
                "name": "teacher",
                "teacher": None,
                "student": SHAPE,
                "train": {**train, "steps": 60},
                "evaluate": {"every": 30, "batch_size": 8},
                "fused": "on",
            },
            {
                "name": "student",
                "student": {**SHAPE, "hidden_size": 8, "intermediate_size": 16},
                "train": {**train, "steps": 40, "accumulate": 2},
                "evaluate": {"every": 10, "batch_size": 8},
                "fused": "on",
            },
        ],
        **changes,
    }
