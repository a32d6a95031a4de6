"""The networks BERT, BertHash, DistilBERT and RoBERTa share: embeddings, encoder, and a head for the task.

BERT: arXiv:1810.04805; DistilBERT: arXiv:1910.01108; RoBERTa: arXiv:1907.11692. BertHash is BERT with its word
embedding factorised (ids → table [V, P] → linear [P, D]).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdistill.models.attention import allowed_keys, first_tokens
from jaxdistill.models.config import EncoderConfig
from jaxdistill.models.dropout import Seeds, Site, dropout, packed_seeds
from jaxdistill.models.encoder import EncoderLayer
from jaxdistill.models.init import constant, weight
from jaxdistill.models.layers import Dense, LayerNorm, activation, gather
from jaxdistill.models.lookup import lookup
from jaxdistill.models.outputs import Request
from jaxdistill.models.stack import Layers, Stack
from jaxdistill.typing import Array, Batch, Float, Int


class Embeddings(nnx.Module):
    """Word (or factorised word), position and token-type embeddings, layer norm, dropout."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width, stddev = config.hidden_size, config.initializer_range
        if config.model_type == "bert_hash":
            self.word_table = weight((config.vocab_size, config.projections), stddev=stddev)
            self.word_projection = Dense((config.projections,), (width,), stddev=stddev, dtype=dtype)
        else:
            self.word = weight((config.vocab_size, width), stddev=stddev)
        self.position = weight((config.max_position_embeddings, width), stddev=stddev)
        if config.type_vocab_size:
            self.token_type = weight((config.type_vocab_size, width), stddev=stddev)
        self.norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.config = config
        self.dtype = dtype

    def __call__(self, batch: Batch, *, seeds: Seeds) -> Float[Array, "B S D"]:
        """Embeddings of `input_ids` (and `token_type_ids` where the architecture has them)."""
        ids = batch["input_ids"]
        x = self._words(ids) + self._positions(batch)
        if self.config.type_vocab_size:
            x = x + self._token_types(batch.get("token_type_ids"), ids.ndim)
        return dropout(self.norm(x), seeds, rate=self.config.hidden_dropout_prob, site=Site.EMBEDDINGS)

    def _words(self, ids: Int[Array, "B S"]) -> Array:
        if self.config.model_type == "bert_hash":
            return self.word_projection(lookup(self.word_table.get_value(), ids, dtype=jnp.dtype(jnp.float32)))
        return lookup(self.word.get_value(), ids, dtype=self.dtype)

    def _positions(self, batch: Batch) -> Array:
        table, ids = self.position[...].astype(self.dtype), batch["input_ids"]
        roberta, padding = self.config.model_type == "roberta", self.config.pad_token_id
        if "positions" in batch:  # several texts a row, each counted from 0
            return gather(table, batch["positions"] + (padding + 1 if roberta else 0))
        if not roberta:
            return table[None, : ids.shape[1]]
        real = ((ids != padding) & batch["attention_mask"].astype(bool)).astype(jnp.int32)
        return gather(table, jnp.cumsum(real, axis=1) * real + padding)

    def _token_types(self, types: Array | None, ndim: int) -> Array:
        table = self.token_type[...].astype(self.dtype)
        if types is None or table.shape[0] == 1:
            return table[0].reshape((1,) * ndim + (-1,))
        if table.shape[0] == 2:  # a select is far cheaper than a gather, and so is its gradient
            first, second = (row.reshape((1,) * ndim + (-1,)) for row in table)
            return jnp.where(types[..., None] > 0, second, first)
        return gather(table, types)

    def decode(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """x · (word embedding)ᵀ: the tied decoder of a masked-LM head, without its bias."""
        kernel = self.decoder_kernel().astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)

    def decoder_kernel(self) -> Float[Array, "D V"]:
        """The word embedding transposed (BertHash's multiplied out)."""
        if self.config.model_type == "bert_hash":
            projection = self.word_projection
            table = self.word_table[...] @ projection.kernel[...] + projection.bias[...].reshape(1, -1)
            return table.T
        return self.word[...].T


class ClassifierNetwork(nnx.Module):
    """Encoder, pooler on the first position, classifier."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width, stddev = config.hidden_size, config.initializer_range
        self.embeddings = Embeddings(config, dtype=dtype)
        self.encoder = Stack(partial(EncoderLayer, config, dtype=dtype), config.num_hidden_layers)
        self.pooler = Dense((width,), (width,), stddev=stddev, dtype=dtype)
        self.classifier = Dense((width,), (config.num_labels,), stddev=stddev, dtype=jnp.dtype(jnp.float32))
        self.config = config

    def __call__(self, batch: Batch, layers: Layers, *, request: Request, seeds: Array | None) -> dict[str, Any]:
        """The signals asked for; the last layer is computed at first tokens alone when no signal needs the others.

        Logits are [B, C], of packed rows [B, G, C]: one for each of their `segment_starts`.
        """
        whole = "last_hidden" in request.names or request.at(self.config.num_hidden_layers - 1)
        hidden, signals = _encode(self.embeddings, batch, layers, request=request, seeds=seeds, first_only=not whole)
        if request.names & {"logits", "head"}:
            starts = batch.get("segment_starts")
            first = first_tokens(hidden, starts) if whole else hidden
            pooled = self._pool(first[:, 0] if starts is None else first, seeds).astype(jnp.float32)
            signals |= _head_signals(self.classifier, pooled, request)
        return signals

    def _pool(self, first: Float[Array, "*B D"], seeds: Array | None) -> Float[Array, "*B D"]:
        """The classifier's input: BERT tanh, DistilBERT ReLU, RoBERTa tanh with one more dropout before it."""
        config = self.config
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        if config.model_type == "roberta":
            first = dropout(first, seeds, rate=rate, site=Site.POOLER)
        squash = jax.nn.relu if config.model_type == "distilbert" else jnp.tanh
        return dropout(squash(self.pooler(first)), seeds, rate=rate, site=Site.CLASSIFIER)


class TokenClassifierNetwork(nnx.Module):
    """Encoder and a classifier on every position."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width, stddev = config.hidden_size, config.initializer_range
        self.embeddings = Embeddings(config, dtype=dtype)
        self.encoder = Stack(partial(EncoderLayer, config, dtype=dtype), config.num_hidden_layers)
        self.classifier = Dense((width,), (config.num_labels,), stddev=stddev, dtype=jnp.dtype(jnp.float32))
        self.config = config

    def __call__(self, batch: Batch, layers: Layers, *, request: Request, seeds: Array | None) -> dict[str, Any]:
        """The signals asked for; logits are [B, S, C]."""
        hidden, signals = _encode(self.embeddings, batch, layers, request=request, seeds=seeds, first_only=False)
        config = self.config
        # of DistilBERT's two rates this head has the encoder's, its classifier of texts the other
        own = None if config.model_type == "distilbert" else config.classifier_dropout
        rate = config.hidden_dropout_prob if own is None else own
        states = dropout(hidden, seeds, rate=rate, site=Site.CLASSIFIER).astype(jnp.float32)
        return signals | _head_signals(self.classifier, states, request)


class QuestionAnsweringNetwork(nnx.Module):
    """Encoder and two numbers a position: how well an answer may start there, and how well it may end there."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width, stddev = config.hidden_size, config.initializer_range
        self.embeddings = Embeddings(config, dtype=dtype)
        self.encoder = Stack(partial(EncoderLayer, config, dtype=dtype), config.num_hidden_layers)
        self.qa_outputs = Dense((width,), (2,), stddev=stddev, dtype=jnp.dtype(jnp.float32))
        self.config = config

    def __call__(self, batch: Batch, layers: Layers, *, request: Request, seeds: Array | None) -> dict[str, Any]:
        """The signals asked for; logits are [B, 2, S], start above end, −inf where an answer cannot be.

        That is padding, and where the batch's `p_mask` is 1.
        """
        hidden, signals = _encode(self.embeddings, batch, layers, request=request, seeds=seeds, first_only=False)
        config = self.config
        rate = config.hidden_dropout_prob if config.model_type == "distilbert" else 0.0
        states = dropout(hidden, seeds, rate=rate, site=Site.CLASSIFIER).astype(jnp.float32)
        signals |= _head_signals(self.qa_outputs, states, request)
        if "logits" in signals:
            possible = batch["attention_mask"].astype(bool)
            if "p_mask" in batch:
                possible &= batch["p_mask"] == 0
            signals["logits"] = jnp.where(possible[:, None], signals["logits"].swapaxes(1, 2), -jnp.inf)
        return signals


class MaskedLMNetwork(nnx.Module):
    """Encoder and masked-LM head: dense, activation, layer norm, decoder tied to the word embedding."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype) -> None:
        width = config.hidden_size
        self.embeddings = Embeddings(config, dtype=dtype)
        self.encoder = Stack(partial(EncoderLayer, config, dtype=dtype), config.num_hidden_layers)
        self.transform = Dense((width,), (width,), stddev=config.initializer_range, dtype=dtype)
        self.transform_norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.decoder_bias = constant((config.vocab_size,), 0.0)
        self.config = config

    def __call__(self, batch: Batch, layers: Layers, *, request: Request, seeds: Array | None) -> dict[str, Any]:
        """The signals asked for; logits are [B, S, V], or [B, K, V] at the batch's `masked_positions` [B, K]."""
        hidden, signals = _encode(self.embeddings, batch, layers, request=request, seeds=seeds, first_only=False)
        if request.names & {"logits", "head"}:
            if "masked_positions" in batch:  # the head is most of a small model's work: nowhere else is it computed
                hidden = jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1, mode="clip")
            x = self.transform_norm(activation(self.config.head_act)(self.transform(hidden)))
            bias = self.decoder_bias[...]
            if "logits" in request.names:
                signals["logits"] = self.embeddings.decode(x) + bias.astype(jnp.float32).reshape(1, 1, -1)
            if "head" in request.names:
                signals["head"] = {"input": x, "kernel": self.embeddings.decoder_kernel(), "bias": bias}
                if self.config.model_type != "bert_hash":
                    signals["head"]["table"] = self.embeddings.word[...]
        return signals


def _head_signals(head: Dense, states: Float[Array, "*B D"], request: Request) -> dict[str, Any]:
    """What is asked for of a dense head on `states`."""
    signals: dict[str, Any] = {}
    if "logits" in request.names:
        signals["logits"] = head(states)
    if "head" in request.names:
        signals["head"] = {"input": states, "kernel": head.kernel[...], "bias": head.bias[...]}
    return signals


def _encode(
    embeddings: Embeddings, batch: Batch, layers: Layers, *, request: Request, seeds: Array | None, first_only: bool
) -> tuple[Array, dict[str, Any]]:
    """The last layer's output and the encoder's signals; seeds: of the batch's examples."""
    segments, starts = batch.get("segment_ids"), batch.get("segment_starts")
    drawn = seeds if starts is None else packed_seeds(seeds, batch["segment_ids"], batch["positions"])
    x = embeddings(batch, seeds=drawn)
    last = layers.count - 1
    hidden, signals = layers(
        x,
        request=request,
        each=[{"first_only": first_only and layer == last} for layer in range(layers.count)],
        scanned={"layer": np.arange(layers.count, dtype=np.uint32)},
        allowed=allowed_keys(batch["attention_mask"], segments),
        seeds=drawn,
        starts=starts,
    )
    return hidden, signals | ({"last_hidden": hidden} if "last_hidden" in request.names else {})
