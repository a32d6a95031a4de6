"""The encoder BERT, BertHash, DistilBERT and RoBERTa share: embeddings, stacked layers run by a scan, and the heads.

BERT: arXiv:1810.04805; DistilBERT: arXiv:1910.01108; RoBERTa: arXiv:1907.11692. BertHash is BERT with its word
embedding factorised (ids → table [V, P] → linear [P, D]).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.attention import SelfAttention, attention_bias
from jaxdistill.models.config import EncoderConfig
from jaxdistill.models.dropout import Site, dropout
from jaxdistill.models.layers import Dense, LayerNorm, activation, normal
from jaxdistill.models.outputs import Request
from jaxdistill.typing import Array, Batch, Float, Int


class Embeddings(nnx.Module):
    """Word (or factorised word), position and token-type embeddings, layer norm, dropout."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, stddev = config.hidden_size, config.initializer_range
        if config.model_type == "bert_hash":
            self.word_table = nnx.Param(normal(rngs, (config.vocab_size, config.projections), stddev))
            self.word_projection = Dense((config.projections,), (width,), stddev=stddev, dtype=dtype, rngs=rngs)
        else:
            self.word = nnx.Param(normal(rngs, (config.vocab_size, width), stddev))
        self.position = nnx.Param(normal(rngs, (config.max_position_embeddings, width), stddev))
        if config.type_vocab_size:
            self.token_type = nnx.Param(normal(rngs, (config.type_vocab_size, width), stddev))
        self.norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.config = config
        self.dtype = dtype

    def __call__(self, batch: Batch, *, seeds: Array | None) -> Float[Array, "B S D"]:
        """Embeddings of `input_ids` (and `token_type_ids` where the architecture has them)."""
        ids = batch["input_ids"]
        x = self._words(ids) + self._positions(ids, batch["attention_mask"])
        if self.config.type_vocab_size:
            x = x + self._token_types(batch.get("token_type_ids"), ids.ndim)
        return dropout(self.norm(x), seeds, rate=self.config.hidden_dropout_prob, site=Site.EMBEDDINGS)

    def _words(self, ids: Int[Array, "B S"]) -> Array:
        if self.config.model_type == "bert_hash":
            return self.word_projection(_gather(self.word_table[...], ids))
        return _gather(self.word[...], ids).astype(self.dtype)

    def _positions(self, ids: Array, mask: Array) -> Array:
        table = self.position[...].astype(self.dtype)
        if self.config.model_type != "roberta":
            return table[None, : ids.shape[1]]
        padding = self.config.pad_token_id
        real = ((ids != padding) & (mask > 0)).astype(jnp.int32)
        return _gather(table, jnp.cumsum(real, axis=1) * real + padding)

    def _token_types(self, types: Array | None, ndim: int) -> Array:
        table = self.token_type[...].astype(self.dtype)
        if types is None or table.shape[0] == 1:
            return table[0].reshape((1,) * ndim + (-1,))
        if table.shape[0] == 2:  # a select is far cheaper than a gather, and so is its gradient
            first, second = (row.reshape((1,) * ndim + (-1,)) for row in table)
            return jnp.where(types[..., None] > 0, second, first)
        return _gather(table, types)

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


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with dropout, a residual and layer norm after it (post-LN)."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, inner, stddev = config.hidden_size, config.intermediate_size, config.initializer_range
        self.attention = SelfAttention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.intermediate = Dense((width,), (inner,), stddev=stddev, dtype=dtype, rngs=rngs)
        self.output = Dense((inner,), (width,), stddev=stddev, dtype=dtype, rngs=rngs)
        self.output_norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B S D"],
        bias: Array,
        *,
        seeds: Array | None,
        layer: Array | int,
        wanted: frozenset[str] = frozenset(),
        first_only: bool = False,
    ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
        """The layer's output (of position 0 alone if `first_only`: Q = 1) and the signals in `wanted`."""
        config = self.config
        attended, signals = self.attention(x, bias, seeds=seeds, layer=layer, wanted=wanted, first_only=first_only)
        # DistilBERT has no dropout between its attention's output projection and the residual.
        rate = 0.0 if config.model_type == "distilbert" else config.hidden_dropout_prob
        attended = dropout(attended, seeds, rate=rate, site=Site.ATTENTION_OUTPUT, layer=layer)
        x = self.attention_norm(attended + (x[:, :1] if first_only else x))
        inner = self.output(activation(config.hidden_act)(self.intermediate(x)))
        inner = dropout(inner, seeds, rate=config.hidden_dropout_prob, site=Site.FEED_FORWARD, layer=layer)
        x = self.output_norm(inner + x)
        return x, signals | ({"hidden_states": x} if "hidden_states" in wanted else {})


class Encoder(nnx.Module):
    """The layers, their parameters stacked on a leading axis L and run by a scan."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> EncoderLayer:
            return EncoderLayer(config, dtype=dtype, rngs=rngs)

        self.layers = stacked(rngs)
        self.count = config.num_hidden_layers

    def __call__(
        self, x: Array, bias: Array, *, seeds: Array | None, request: Request, first_only: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Output of the last layer (position 0 alone if `first_only`) and the layers' signals, stacked.

        Neighbouring layers that must return the same signals are one scan; nothing is kept of the others.
        """
        graphdef, stacked = nnx.split(self.layers)
        collected: dict[str, dict[int, Array]] = {}
        if 0 in request.of("hidden_states"):
            collected["hidden_states"] = {0: x}
        segments = _segments(request, self.count, apart=first_only)
        sizes = tuple(stop - start for start, stop in segments)
        for (start, stop), part in zip(segments, _split(stacked, sizes), strict=True):
            wanted = request.at(start)

            def body(x: Array, scanned: Any, wanted: frozenset[str] = wanted, last: bool = stop == self.count):
                params, layer = scanned
                return nnx.merge(graphdef, params)(
                    x, bias, seeds=seeds, layer=layer, wanted=wanted, first_only=first_only and last
                )

            if stop - start == 1:
                x, signals = body(x, (jax.tree.map(lambda leaf: leaf[0], part), jnp.uint32(start)))
                signals = {name: value[None] for name, value in signals.items()}
            else:
                x, signals = jax.lax.scan(body, x, (part, jnp.arange(start, stop, dtype=jnp.uint32)))
            for name, value in signals.items():
                for layer in range(start, stop):
                    index = layer + (name == "hidden_states")
                    collected.setdefault(name, {})[index] = value[layer - start]
        return x, {name: jnp.stack([values[i] for i in request.of(name)]) for name, values in collected.items()}


def _segments(request: Request, count: int, *, apart: bool) -> list[tuple[int, int]]:
    """Ranges of neighbouring layers with the same signals; the last layer on its own if `apart`."""
    starts = [0]
    for layer in range(1, count):
        if request.at(layer) != request.at(layer - 1) or (apart and layer == count - 1):
            starts.append(layer)
    return list(zip(starts, [*starts[1:], count], strict=True))


def _split(stacked: Any, sizes: tuple[int, ...]) -> list[Any]:
    """The stacked parameters cut along L; its gradient is one concatenation, not a sum of padded arrays."""
    if len(sizes) == 1:
        return [stacked]
    leaves, treedef = jax.tree.flatten(stacked)
    cut = [jax.lax.split(leaf, sizes, axis=0) for leaf in leaves]
    return [treedef.unflatten([parts[i] for parts in cut]) for i in range(len(sizes))]


class ClassifierNetwork(nnx.Module):
    """Encoder, pooler on the first position, classifier."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, stddev = config.hidden_size, config.initializer_range
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.pooler = Dense((width,), (width,), stddev=stddev, dtype=dtype, rngs=rngs)
        self.classifier = Dense((width,), (config.num_labels,), stddev=stddev, dtype=jnp.dtype(jnp.float32), rngs=rngs)
        self.config = config

    def __call__(self, batch: Batch, *, request: Request, seeds: Array | None) -> dict[str, Any]:
        """The signals asked for; the last layer is computed at position 0 alone when no signal needs the others."""
        whole = "last_hidden" in request.names or request.at(self.config.num_hidden_layers - 1)
        hidden, signals = _encode(self, batch, request=request, seeds=seeds, first_only=not whole)
        if request.names & {"logits", "head"}:
            pooled = self._pool(hidden[:, 0], seeds).astype(jnp.float32)
            if "logits" in request.names:
                signals["logits"] = self.classifier(pooled)
            if "head" in request.names:
                classifier = self.classifier
                signals["head"] = {"input": pooled, "kernel": classifier.kernel[...], "bias": classifier.bias[...]}
        return signals

    def _pool(self, first: Float[Array, "B D"], seeds: Array | None) -> Float[Array, "B D"]:
        """The classifier's input: BERT tanh, DistilBERT ReLU, RoBERTa tanh with one more dropout before it."""
        config = self.config
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        if config.model_type == "roberta":
            first = dropout(first, seeds, rate=rate, site=Site.POOLER)
        squash = jax.nn.relu if config.model_type == "distilbert" else jnp.tanh
        return dropout(squash(self.pooler(first)), seeds, rate=rate, site=Site.CLASSIFIER)


class MaskedLMNetwork(nnx.Module):
    """Encoder and masked-LM head: dense, activation, layer norm, decoder tied to the word embedding."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.transform = Dense((width,), (width,), stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.transform_norm = LayerNorm(width, eps=config.layer_norm_eps, dtype=dtype)
        self.decoder_bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))
        self.config = config

    def __call__(self, batch: Batch, *, request: Request, seeds: Array | None) -> dict[str, Any]:
        """The signals asked for; logits are [B, S, V]."""
        hidden, signals = _encode(self, batch, request=request, seeds=seeds, first_only=False)
        if request.names & {"logits", "head"}:
            # RoBERTa's head is GELU whatever its encoder's activation.
            name = "gelu" if self.config.model_type == "roberta" else self.config.hidden_act
            x = self.transform_norm(activation(name)(self.transform(hidden)))
            bias = self.decoder_bias[...]
            if "logits" in request.names:
                signals["logits"] = self.embeddings.decode(x) + bias.reshape(1, 1, -1)
            if "head" in request.names:
                signals["head"] = {"input": x, "kernel": self.embeddings.decoder_kernel(), "bias": bias}
        return signals


def _encode(
    network: ClassifierNetwork | MaskedLMNetwork,
    batch: Batch,
    *,
    request: Request,
    seeds: Array | None,
    first_only: bool,
) -> tuple[Array, dict[str, Any]]:
    """The last layer's output and the encoder's signals."""
    x = network.embeddings(batch, seeds=seeds)
    bias = attention_bias(batch["attention_mask"])
    hidden, signals = network.encoder(x, bias, seeds=seeds, request=request, first_only=first_only)
    return hidden, signals | ({"last_hidden": hidden} if "last_hidden" in request.names else {})


def _gather(table: Float[Array, "V D"], ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Rows of the table; ids out of range read the nearest row (their own check is the data's)."""
    return jnp.take(table, ids, axis=0, mode="clip")
