"""Tiny random decoders as transformers makes them, and batches with padding and with packed documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VOCAB, LENGTH = 60, 12
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "biases, tied, wide heads, linear RoPE": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
    },
    "llama3 RoPE, one key head": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "rope_parameters": {**LLAMA3, "rope_theta": 500.0, "original_max_position_embeddings": 16},
    },
    "dynamic RoPE": {
        "model_type": "llama",
        "max_position_embeddings": 8,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "qwen2": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 4},
}


def hf_model(variant: str, *, seed: int = 0) -> Any:
    """A random model in evaluation mode, its biases and norms random too (fresh ones are 0 and 1 and hide mistakes)."""
    import torch
    import transformers

    torch.manual_seed(seed)
    fields = SHAPE | VARIANTS[variant]
    config = transformers.AutoConfig.for_model(**fields)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hf_directory(directory: Path, variant: str) -> tuple[Path, Any]:
    """A saved tiny model: (directory, transformers' model)."""
    model = hf_model(variant)
    model.save_pretrained(directory)
    return directory, model


def batch(*, padded: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Three rows: a full one, one padded on the right and one on the left (or all full)."""
    rng = np.random.default_rng(seed)
    mask = np.ones((3, LENGTH), np.int32)
    if padded:
        mask[1, 7:] = 0
        mask[2, :3] = 0
    ids = np.where(mask, rng.integers(4, VOCAB, mask.shape), 0).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "labels": rng.integers(0, VOCAB, mask.shape).astype(np.int32)}


def pack(documents: list[np.ndarray], length: int = LENGTH) -> dict[str, np.ndarray]:
    """One row with the documents behind one another, then padding."""
    ids, segments, positions = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for number, document in enumerate(documents, start=1):
        where = slice(start, start + len(document))
        ids[0, where], segments[0, where], positions[0, where] = document, number, np.arange(len(document))
        start += len(document)
    return {"input_ids": ids, "segment_ids": segments, "positions": positions}
