"""A decoder small enough to make in a moment, with a tokenizer of bytes, as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ["<pad>", "<s>", "</s>"]
VOCAB_SIZE = len(SPECIAL) + 256
POSITIONS = 64
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def byte_tokenizer(*, bos: bool = True, eos: bool = False, vocabulary: list[str] | None = None) -> Any:
    """A token a byte; `bos` and `eos`: what it puts around a text."""
    import tokenizers
    import transformers

    letters = vocabulary or sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    table = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(table, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    if bos or eos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    )


def write_language_model(
    directory: Path, *, seed: int = 0, tokenizer: Any = None, max_shard_bytes: int = 10**9, **fields: Any
) -> Path:
    """Write a random decoder with its tokenizer; `fields` of its configuration beside `SHAPE`."""
    import jax

    from jaxdistill import models

    config = models.config_from_hf({"model_type": "llama", "vocab_size": VOCAB_SIZE, **SHAPE, **fields})
    model = models.build(config, task="causal_lm")
    params = model.init(jax.random.key(seed))
    models.save_pretrained(
        model, params, directory, tokenizer=tokenizer or byte_tokenizer(), max_shard_bytes=max_shard_bytes
    )
    return directory
