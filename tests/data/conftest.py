"""A small WordPiece tokenizer made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_rows import WORDS

from jaxdistill.data import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as BERT's tokenizers have it: vocabulary and settings."""
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers, processors

    directory = tmp_path_factory.mktemp("tokenizer")
    vocab = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "vocab.txt").write_text("\n".join(vocab))
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """RoBERTa's kind, its merges learned from two lines."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    directory = tmp_path_factory.mktemp("roberta")
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(["the film the film was not good", "great plot"] * 5, 290, special_tokens=specials)
    trained.save_model(str(directory))
    transformers.RobertaTokenizerFast(str(directory / "vocab.json"), str(directory / "merges.txt")).save_pretrained(
        directory
    )
    return load_tokenizer(directory), directory
