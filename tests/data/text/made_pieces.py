"""A WordPiece tokenizer, documents of words of one to three pieces, and masked rows taken apart again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxdistill.config.data_schema import DataConfig, SourceConfig
from jaxdistill.data import Tokenizer, load_tokenizer
from jaxdistill.data.text import TextSplit, open_split

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STEMS, SUFFIXES = [f"s{index}" for index in range(60)], [f"##x{index}" for index in range(30)]


def make_pieces(directory: Path, *, mask: bool = True) -> Tokenizer:
    """Stems and suffixes as BERT's tokenizer has them."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *STEMS, *SUFFIXES])}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **({"mask_token": "[MASK]"} if mask else {})}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(directory)


def made_documents(count: int, *, words: tuple[int, int] = (3, 60), seed: int = 0) -> list[str]:
    """So many documents of words, one in twenty of them unknown."""
    rng = np.random.default_rng(seed)
    return [" ".join(_word(rng) for _ in range(rng.integers(*words))) for _ in range(count)]


def _word(rng: np.random.Generator) -> str:
    if rng.random() < 0.05:
        return "?"
    parts = [SUFFIXES[rng.integers(len(SUFFIXES))][2:] for _ in range(rng.integers(3))]
    return STEMS[rng.integers(len(STEMS))] + "".join(parts)


def open_masked(path: Path, tokenizer: Tokenizer, cache: Path, *, length: int = 64, **settings: Any) -> TextSplit:
    """The whole of a file as one split of a masked language model's data."""
    data = DataConfig(task="masked_lm", test=SourceConfig(path=str(path)), **settings)
    split = open_split(data, "test", tokenizer, sequence_length=length, cache_dir=cache)
    assert split is not None
    return split


def unmasked(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The tokens as they were: input_ids with the labels put back."""
    ids = batch["input_ids"].copy()
    rows, places = np.nonzero(batch["labels"] >= 0)
    ids[rows, batch["masked_positions"][rows, places]] = batch["labels"][rows, places]
    return ids


def chosen(batch: dict[str, np.ndarray]) -> np.ndarray:
    """bool [B, S]: the positions that have a label."""
    where = np.zeros(batch["input_ids"].shape, bool)
    rows, places = np.nonzero(batch["labels"] >= 0)
    where[rows, batch["masked_positions"][rows, places]] = True
    return where
