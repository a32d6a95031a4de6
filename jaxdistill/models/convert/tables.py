"""Which Hugging Face tensors make up each of our parameters, and how: one table per architecture.

An entry is (our path, their names, kind). Names hold `{i}` for the layer index where ours are stacked. Kinds:
`copy` the same array; `linear` their [out, in] is our [in, out], our inputs perhaps split into axes; `heads` the same
with our outputs split in two; `qkv` three `linear` tensors (or biases) side by side on our axis 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxdistill.models.config import EncoderConfig, ModelConfig
from jaxdistill.models.llama_config import LLAMA_ARCHITECTURES, LlamaConfig

PREFIXES = {"bert": "bert.", "bert_hash": "bert.", "distilbert": "distilbert.", "roberta": "roberta."}
PREFIXES |= dict.fromkeys(LLAMA_ARCHITECTURES, "model.")


@dataclass(frozen=True)
class Entry:
    """One of our parameters: its path, the names of the tensors that make it up, and how (see the module)."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    kind: str

    @property
    def stacked(self) -> bool:
        """Whether the parameter has the leading layer axis."""
        return "{i}" in self.names[0]

    def tensors(self, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], tuple[int | slice, ...]]]:
        """(their name, their shape, the index into our array) of each tensor, our whole array having `shape`."""
        layers = range(shape[0]) if self.stacked else (None,)
        inner = shape[1:] if self.stacked else shape
        for layer in layers:
            for k, name in enumerate(self.names):
                index = () if layer is None else (layer,)
                yield name.format(i=layer), self.their_shape(inner), (*index, *self._part(inner, k))

    def their_shape(self, inner: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of their tensors when one layer of ours has shape `inner`."""
        match self.kind:
            case "copy":
                return inner
            case "linear":
                return (int(np.prod(inner)),) if self._is_bias else (inner[-1], int(np.prod(inner[:-1])))
            case "heads":
                return (inner[-2] * inner[-1], inner[0])
            case "qkv":
                width = inner[-2] * inner[-1]
                return (width,) if self._is_bias else (width, inner[0])
        raise AssertionError(self.kind)

    def to_ours(self, tensor: np.ndarray, target: tuple[int, ...]) -> np.ndarray:
        """Their tensor as a view shaped like the part of our array it fills."""
        return (tensor if tensor.ndim == 1 or self.kind == "copy" else tensor.T).reshape(target)

    def to_theirs(self, part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The part of our array as their tensor of `shape`, contiguous."""
        transposed = len(shape) == 2 and self.kind != "copy"
        return np.ascontiguousarray(part.reshape(shape[::-1]).T if transposed else part.reshape(shape))

    @property
    def _is_bias(self) -> bool:
        return self.path[-1] == "bias"

    def _part(self, inner: tuple[int, ...], k: int) -> tuple[int | slice, ...]:
        if self.kind != "qkv":
            return ()
        return (k,) if self._is_bias else (slice(None), k)


def entries(config: ModelConfig, task: str, *, factorised: bool = False) -> list[Entry]:
    """The table for a model; BertHash's word embedding is left out (see `safetensors_io`) unless `factorised`."""
    if isinstance(config, LlamaConfig):
        return _llama(config)
    match config.model_type:
        case "bert" | "bert_hash":
            table = _bert(config, "bert.", factorised=factorised) + (_head(task) or _bert_heads(task))
        case "roberta":
            table = _bert(config, "roberta.", factorised=False) + (_head(task) or _roberta_heads(task))
        case "distilbert":
            table = _distilbert() + (_head(task) or _distilbert_heads(task))
        case unknown:
            raise AssertionError(unknown)
    return table


def _dense(path: tuple[str, ...], name: str) -> list[Entry]:
    return [
        Entry((*path, "kernel"), (f"{name}.weight",), "linear"),
        Entry((*path, "bias"), (f"{name}.bias",), "linear"),
    ]


def _norm(path: tuple[str, ...], name: str) -> list[Entry]:
    return [Entry((*path, "scale"), (f"{name}.weight",), "copy"), Entry((*path, "bias"), (f"{name}.bias",), "copy")]


def _qkv(path: tuple[str, ...], names: tuple[str, str, str]) -> list[Entry]:
    return [
        Entry((*path, "kernel"), tuple(f"{name}.weight" for name in names), "qkv"),
        Entry((*path, "bias"), tuple(f"{name}.bias" for name in names), "qkv"),
    ]


def _bert(config: EncoderConfig, prefix: str, *, factorised: bool) -> list[Entry]:
    embeddings, ours = f"{prefix}embeddings", ("embeddings",)
    table = [Entry((*ours, "position"), (f"{embeddings}.position_embeddings.weight",), "copy")]
    if config.type_vocab_size:
        table.append(Entry((*ours, "token_type"), (f"{embeddings}.token_type_embeddings.weight",), "copy"))
    if config.model_type != "bert_hash":
        table.append(Entry((*ours, "word"), (f"{embeddings}.word_embeddings.weight",), "copy"))
    elif factorised:
        words = f"{embeddings}.word_embeddings"
        table.append(Entry((*ours, "word_table"), (f"{words}.embeddings.weight",), "copy"))
        table += _dense((*ours, "word_projection"), f"{words}.projections")
    layer, layers = f"{prefix}encoder.layer.{{i}}", ("encoder", "layers")
    attention = f"{layer}.attention.self"
    return [
        *table,
        *_norm((*ours, "norm"), f"{embeddings}.LayerNorm"),
        *_qkv((*layers, "attention", "qkv"), (f"{attention}.query", f"{attention}.key", f"{attention}.value")),
        *_dense((*layers, "attention", "output"), f"{layer}.attention.output.dense"),
        *_norm((*layers, "attention_norm"), f"{layer}.attention.output.LayerNorm"),
        *_dense((*layers, "intermediate"), f"{layer}.intermediate.dense"),
        *_dense((*layers, "output"), f"{layer}.output.dense"),
        *_norm((*layers, "output_norm"), f"{layer}.output.LayerNorm"),
    ]


def _head(task: str) -> list[Entry]:
    """The heads that every architecture calls the same; empty for a task with another."""
    match task:
        case "token_classification":
            return _dense(("classifier",), "classifier")
        case "question_answering":
            return _dense(("qa_outputs",), "qa_outputs")
    return []


def _bert_heads(task: str) -> list[Entry]:
    if task == "classification":
        return [*_dense(("pooler",), "bert.pooler.dense"), *_dense(("classifier",), "classifier")]
    return [
        *_dense(("transform",), "cls.predictions.transform.dense"),
        *_norm(("transform_norm",), "cls.predictions.transform.LayerNorm"),
        Entry(("decoder_bias",), ("cls.predictions.bias",), "copy"),
    ]


def _roberta_heads(task: str) -> list[Entry]:
    if task == "classification":
        return [*_dense(("pooler",), "classifier.dense"), *_dense(("classifier",), "classifier.out_proj")]
    return [
        *_dense(("transform",), "lm_head.dense"),
        *_norm(("transform_norm",), "lm_head.layer_norm"),
        Entry(("decoder_bias",), ("lm_head.bias",), "copy"),
    ]


def _distilbert() -> list[Entry]:
    embeddings, ours = "distilbert.embeddings", ("embeddings",)
    layer, layers = "distilbert.transformer.layer.{i}", ("encoder", "layers")
    attention = f"{layer}.attention"
    return [
        Entry((*ours, "word"), (f"{embeddings}.word_embeddings.weight",), "copy"),
        Entry((*ours, "position"), (f"{embeddings}.position_embeddings.weight",), "copy"),
        *_norm((*ours, "norm"), f"{embeddings}.LayerNorm"),
        *_qkv((*layers, "attention", "qkv"), (f"{attention}.q_lin", f"{attention}.k_lin", f"{attention}.v_lin")),
        *_dense((*layers, "attention", "output"), f"{attention}.out_lin"),
        *_norm((*layers, "attention_norm"), f"{layer}.sa_layer_norm"),
        *_dense((*layers, "intermediate"), f"{layer}.ffn.lin1"),
        *_dense((*layers, "output"), f"{layer}.ffn.lin2"),
        *_norm((*layers, "output_norm"), f"{layer}.output_layer_norm"),
    ]


def _distilbert_heads(task: str) -> list[Entry]:
    if task == "classification":
        return [*_dense(("pooler",), "pre_classifier"), *_dense(("classifier",), "classifier")]
    return [
        *_dense(("transform",), "vocab_transform"),
        *_norm(("transform_norm",), "vocab_layer_norm"),
        Entry(("decoder_bias",), ("vocab_projector.bias",), "copy"),
    ]


def _llama(config: LlamaConfig) -> list[Entry]:
    """Llama, Mistral, Qwen2 and Qwen3 share their names; a tied head is the word embedding and has no tensor."""
    layer, layers = "model.layers.{i}", ("decoder", "layers")
    attention, feed_forward = f"{layer}.self_attn", f"{layer}.mlp"
    norms = [
        (("norm",), "model.norm"),
        ((*layers, "attention_norm"), f"{layer}.input_layernorm"),
        ((*layers, "feed_forward_norm"), f"{layer}.post_attention_layernorm"),
    ]
    if config.qk_norm:
        norms.append(((*layers, "attention", "query_norm"), f"{attention}.q_norm"))
        norms.append(((*layers, "attention", "key_norm"), f"{attention}.k_norm"))
    products = [
        ((*layers, "attention", "query"), f"{attention}.q_proj", "heads", config.attention_bias),
        ((*layers, "attention", "key"), f"{attention}.k_proj", "heads", config.attention_bias),
        ((*layers, "attention", "value"), f"{attention}.v_proj", "heads", config.attention_bias),
        ((*layers, "attention", "output"), f"{attention}.o_proj", "linear", config.output_bias),
        ((*layers, "gate"), f"{feed_forward}.gate_proj", "linear", config.mlp_bias),
        ((*layers, "up"), f"{feed_forward}.up_proj", "linear", config.mlp_bias),
        ((*layers, "down"), f"{feed_forward}.down_proj", "linear", config.mlp_bias),
    ]
    if not config.tie_word_embeddings:
        products.append((("head",), "lm_head", "linear", False))
    return [
        Entry(("embeddings", "word"), ("model.embed_tokens.weight",), "copy"),
        *(Entry((*path, "scale"), (f"{name}.weight",), "copy") for path, name in norms),
        *(Entry((*path, "kernel"), (f"{name}.weight",), kind) for path, name, kind, _ in products),
        *(Entry((*path, "bias"), (f"{name}.bias",), "linear") for path, name, _, has_bias in products if has_bias),
    ]
