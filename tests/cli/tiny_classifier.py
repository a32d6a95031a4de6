"""A classifier small enough to make in a moment, as a Hugging Face directory; its weights are random."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

GOOD, BAD = ["very", "good", "great", "fine"], ["bad", "awful", "dull", "not"]
WORDS = ["a", "the", "film", "plot", "was", "is", *GOOD, *BAD, "and", "but", ".", ",", "!"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def tiny_tokenizer() -> Any:
    """A word-level BERT tokenizer of `VOCABULARY`."""
    import tokenizers
    import transformers

    table = {word: index for index, word in enumerate(VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(table, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **special
    )


def write_classifier(
    directory: Path,
    *,
    labels: tuple[str, ...] | None = ("negative", "positive"),
    seed: int = 0,
    vocab_size: int = len(VOCABULARY),
    model_type: str = "bert",
    task: str = "classification",
) -> Path:
    """Write a model of one layer and 32 positions with its tokenizer."""
    import jax

    from jaxdistill import models

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = models.config_from_hf(
        {"model_type": model_type, "vocab_size": vocab_size, "max_position_embeddings": 32, "initializer_range": 0.5}
        | shape
    )
    if labels is not None:
        config = dataclasses.replace(config, num_labels=len(labels), id2label=labels)
    model = models.build(config, task=task)
    params = model.init(jax.random.key(seed))
    models.save_pretrained(model, params, directory, tokenizer=tiny_tokenizer(), factorised=model_type == "bert_hash")
    return directory
