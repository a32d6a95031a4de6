"""Tiny random encoders as transformers makes them, and batches with every kind of padding."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` that compiles in half the time: tests run what they compile once."""

VOCAB, POSITIONS, LABELS = 60, 24, 3
BERT_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
ARCHITECTURES = ("bert", "distilbert", "roberta")
SUFFIXES = {
    "classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "masked_lm": "ForMaskedLM",
    "base": "Model",
}
"""How transformers' classes end."""


def hf_config(architecture: str, **changes: Any) -> Any:
    """transformers' configuration of a tiny encoder, attention computed eagerly so that it can be returned."""
    import transformers

    match architecture:
        case "bert":
            config = transformers.BertConfig(**BERT_SHAPE, **changes)
        case "roberta":
            shape = BERT_SHAPE | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
            config = transformers.RobertaConfig(**shape, **changes)
        case "distilbert":
            config = transformers.DistilBertConfig(
                vocab_size=VOCAB,
                dim=16,
                n_layers=2,
                n_heads=4,
                hidden_dim=40,
                max_position_embeddings=POSITIONS,
                initializer_range=0.2,
                **changes,
            )
        case _:
            raise AssertionError(architecture)
    config._attn_implementation = "eager"
    return config


def hf_model(architecture: str, task: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model in evaluation mode, its biases and norms random too (fresh ones are 0 and 1 and hide mistakes)."""
    import torch
    import transformers

    torch.manual_seed(seed)
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[architecture]
    config = hf_config(architecture, **({"num_labels": LABELS} if task.endswith("classification") else {}), **changes)
    model = getattr(transformers, name + SUFFIXES[task])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hf_directory(directory: Path, architecture: str, task: str, **changes: Any) -> tuple[Path, Any]:
    """A saved tiny model: (directory, transformers' model)."""
    model = hf_model(architecture, task, **changes)
    model.save_pretrained(directory)
    return directory, model


def batch(architecture: str = "bert", *, size: int = 5, length: int = 12, seed: int = 0, pairs: bool = True) -> dict:
    """Sequences of many lengths, padded on the right with the architecture's own token; pairs where it has types."""
    rng = np.random.default_rng(seed)
    padding = 1 if architecture == "roberta" else 0
    lengths = np.linspace(length, 2, size).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(4, VOCAB, (size, length)), padding).astype(np.int32)
    types = np.zeros_like(ids)
    if pairs and architecture == "bert":
        types = ((np.arange(length) >= lengths[:, None] // 2) & (mask > 0)).astype(np.int32)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "labels": rng.integers(0, LABELS, size).astype(np.int32),
        "example_id": np.arange(size, dtype=np.int32),
    }


def torch_inputs(architecture: str, of: dict) -> dict[str, Any]:
    """The same batch as transformers' model wants it."""
    import torch

    names = ("input_ids", "attention_mask") + (("token_type_ids",) if architecture != "distilbert" else ())
    return {name: torch.tensor(of[name], dtype=torch.long) for name in names}


@cache
def apply(model: Any, outputs: tuple[str, ...] = ("logits",)) -> Any:
    """`model.apply` compiled: eager, every operation would be compiled on its own."""
    return jit(lambda params, of: model.apply(params, of, outputs))


def pad(of: dict, length: int, *, content: int = 7) -> dict:
    """The batch with more padding, its content arbitrary."""
    more = length - of["input_ids"].shape[1]
    widths = ((0, 0), (0, more))
    return of | {
        "input_ids": np.pad(of["input_ids"], widths, constant_values=content),
        "attention_mask": np.pad(of["attention_mask"], widths),
        "token_type_ids": np.pad(of["token_type_ids"], widths, constant_values=1),
    }
