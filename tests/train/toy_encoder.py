"""A small classifier with the protocol of `models.Model`, so that the step's own tests compile in a moment."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class ToyEncoder:
    """Masked mean of word embeddings, a hidden layer, logits; dropout per example, as the real models do it."""

    vocab_size: int = 50
    hidden_size: int = 16
    num_labels: int = 3
    dropout: float = 0.0

    def init(self, key):
        table, hidden, head = jax.random.split(key, 3)
        width = self.hidden_size
        return {
            "embeddings": {"word": jax.random.normal(table, (self.vocab_size, width))},
            "hidden": {"kernel": jax.random.normal(hidden, (width, width)) / 4, "bias": jnp.zeros((width,))},
            "classifier": {
                "kernel": jax.random.normal(head, (width, self.num_labels)),
                "bias": jnp.zeros((self.num_labels,)),
            },
        }

    def apply(self, params, batch, outputs=("logits",), key=None):
        mask = batch["attention_mask"][:, :, None] > 0
        words = jnp.where(mask, params["embeddings"]["word"][batch["input_ids"]], 0.0)
        mean = jnp.sum(words, 1) / jnp.maximum(jnp.sum(mask, 1, dtype=jnp.float32), 1)
        hidden = jnp.tanh(mean @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        if key is not None and self.dropout:
            keys = jax.vmap(lambda example: jax.random.fold_in(key, example))(batch["example_id"])
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, (self.hidden_size,)))(keys)
            hidden = jnp.where(keep, hidden / (1 - self.dropout), 0.0)
        signals = {"logits": hidden @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]}
        return {name: signals[name] for name in outputs}


def make_batch(rows=64, length=12, vocab_size=50, num_labels=3, seed=0, fillers=10, unlabelled=9):
    """A batch of uneven rows: filler rows at the end, and rows without a label at the start."""
    rng = np.random.default_rng(seed)
    real = rows - fillers
    lengths = np.where(np.arange(rows) < real, rng.integers(2, length + 1, rows), 0)
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    labels = rng.integers(0, num_labels, rows)
    labels[:unlabelled], labels[real:] = -100, -100
    example_id = np.where(np.arange(rows) < real, rng.permutation(rows), -1)
    return {
        "input_ids": (rng.integers(1, vocab_size, (rows, length)) * mask).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": np.zeros((rows, length), np.int32),
        "labels": labels.astype(np.int32),
        "example_id": example_id.astype(np.int32),
    }
