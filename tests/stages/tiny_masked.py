"""A chain of tiny masked language models on text in which every word says what may follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*(f"w{index}" for index in range(10)), *(f"##{index}" for index in range(10))]
"""Of the words of `tiny_text`: w0 … w39 are one or two pieces."""

SHAPE = {
    "architecture": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def write_piece_tokenizer(directory: Path, pieces: list[str] | None = None, *, mask: bool = True) -> Path:
    """A WordPiece tokenizer as BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *(pieces or PIECES)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **({"mask_token": "[MASK]"} if mask else {})}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def masked_config(directory: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A teacher on text alone, and a student of one of its layers by DistilBERT's loss."""
    train = {"batch_size": 8, "learning_rate": 1e-2, "log_every": 5}
    return {
        "name": "tiny-masked",
        "output_dir": str(output),
        "tokenizer": str(directory / "tokenizer"),
        "data": {
            "task": "masked_lm",
            "train": {"path": str(directory / "train.txt")},
            "validation": {"path": str(directory / "validation.txt")},
            "test": {"path": str(directory / "test.txt")},
            "sample_by": "line",
            "max_length": 40,
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
            },
            {
                "name": "student",
                "student": {
                    **SHAPE,
                    "num_hidden_layers": 1,
                    "warm_start": {"layers": "uniform", "embeddings": "copy"},
                },
                "loss": {"preset": "distilbert"},
                "train": {**train, "steps": 40, "accumulate": 2},
                "evaluate": {"every": 10, "batch_size": 8},
            },
        ],
        **changes,
    }
