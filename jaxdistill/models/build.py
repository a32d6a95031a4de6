"""`Model`: a network as two pure functions, init and apply, over a plain nested dictionary of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.errors import ModelError
from jaxdistill.models.bert import (
    ClassifierNetwork,
    MaskedLMNetwork,
    QuestionAnsweringNetwork,
    TokenClassifierNetwork,
)
from jaxdistill.models.causal_attention import IMPLEMENTATIONS
from jaxdistill.models.config import EncoderConfig, ModelConfig, config_from_hf, positions
from jaxdistill.models.dropout import example_seeds
from jaxdistill.models.init import Path, declared, draw, put, take
from jaxdistill.models.llama import CausalLMNetwork
from jaxdistill.models.llama_config import LlamaConfig
from jaxdistill.models.outputs import Outputs, parse
from jaxdistill.models.quantised import is_quantised, size_of
from jaxdistill.models.stack import REMAT, STACKS, Layers
from jaxdistill.typing import Batch, Params, PRNGKeyArray, Signals

ENCODER_TASKS = ("classification", "masked_lm", "token_classification", "question_answering")
DECODER_TASKS = ("causal_lm",)
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Model:
    """An encoder or decoder for a task: no arrays, hashable, its functions pure. `build` makes and checks one.

    dtype is that of the arithmetic; parameters are float32, and so are softmax, norms, RoPE, logits and their sums.
    remat is what the backward pass computes again, attention how a decoder's is computed: neither changes a result.
    """

    config: Any  # a ModelConfig: who reads what only encoders or only decoders have knows which it is
    task: str
    dtype: jnp.dtype
    remat: str = "none"
    attention: str = "auto"

    @property
    def num_labels(self) -> int:
        """Classes of the classifier (meaningless for a masked LM, 0 for a decoder)."""
        return self.config.num_labels if isinstance(self.config, EncoderConfig) else 0

    @property
    def word_table(self) -> Path | None:
        """Where in the parameters a word table is that tokens are looked up in and nothing else; None: nowhere."""
        if not isinstance(self.config, EncoderConfig) or self.task == "masked_lm":
            return None  # a language model's table may be its head as well
        return ("embeddings", "word_table" if self.config.model_type == "bert_hash" else "word")

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Fresh float32 parameters: normal kernels and tables (initializer_range), zero biases. Can be jitted."""
        return draw(key, structure(self).parameters)

    def apply(
        self, params: Params, batch: Batch, outputs: Outputs = ("logits",), key: PRNGKeyArray | None = None
    ) -> Signals:
        """The signals asked for, by name; nothing else is computed or kept.

        Args:
            params: nested dictionary as `init` gives it.
            batch: input_ids and attention_mask int32 [B, S] (the mask may be bool); token_type_ids if there are any;
                example_id int32 [B] for dropout. A row may hold several documents, which do not attend to each other:
                segment_ids int32 [B, S] (0 = padding) and positions int32 [B, S] in each document; for a classifier
                also where each of up to G begins, segment_starts int32 [B, G], and example_id is [B, G]. For a decoder
                the mask may be left out. For question_answering p_mask int32 [B, S], 1 where no answer can start or end
                (question, separators). For masked_lm masked_positions int32 [B, K], where alone its head is computed.
            outputs: names, or {name: layers} (None = all layers). logits float32: [B, C], or [B, G, C]; [B, S, V] (a
                masked LM's [B, K, V] if there are masked_positions), or [B, S, C] of a token classifier; [B, 2, S] of
                starts and ends of answers, −inf where there can be none. last_hidden
                [B, S, D]; head {input, kernel, bias if it has one}, whose product the logits are (of question answering
                before they are transposed and masked);
                hidden_states [L+1, B, S, D], of which 0 are the embeddings and L the last_hidden; attentions and
                attention_scores (before mask and softmax) [L, B, N, S, S] float32; qkv [L, 3, B, S, N, H], a
                decoder's normalised and rotated, its shared keys and values repeated.
            key: for dropout; None means none. Each example's masks depend on the key and its example_id alone.
                Decoders have none.

        Raises:
            ModelError: unknown outputs, a batch without ids or mask, a sequence longer than the positions, or dropout
                without example_id.
        """
        encoder = isinstance(self.config, EncoderConfig)
        needed = ("input_ids", "attention_mask") if encoder else ("input_ids",)
        if absent := [name for name in needed if name not in batch]:
            raise ModelError(f"batch: {' and '.join(absent)} missing; it needs {' and '.join(needed)} [B, S]")
        request = parse(outputs, self.config.num_hidden_layers)
        length = batch["input_ids"].shape[1]
        if length > positions(self.config):
            raise ModelError(
                f"input_ids: {length} tokens a sequence, but the model has {positions(self.config)} positions; "
                "set max_length (and truncate) so that sequences fit"
            )
        if encoder and key is not None and "example_id" not in batch:
            raise ModelError("batch: dropout needs example_id [B], from which each example's masks are drawn")
        parts = structure(self)
        outer = {name: leaf for name, leaf in params.items() if name != parts.stack}
        network = nnx.merge(parts.outer, nnx.State(outer))
        layers = Layers(parts.layer, params[parts.stack]["layers"], self.config.num_hidden_layers, self.remat)
        if not encoder:
            return network(batch, layers, request=request)
        seeds = None if key is None else example_seeds(key, batch["example_id"])
        return network(batch, layers, request=request, seeds=seeds)


def build(
    config: ModelConfig | Mapping[str, Any],
    *,
    task: str = "classification",
    num_labels: int | None = None,
    dtype: Any = jnp.float32,
    remat: str = "none",
    attention: str = "auto",
) -> Model:
    """A model of `config` (ours, or a dictionary as `config_from_hf` reads it) for `task`.

    Args:
        task: "classification", "token_classification", "question_answering" or "masked_lm" for an encoder,
            "causal_lm" for a decoder.
        num_labels: classes; default the configuration's (question_answering has none: its head always has two).
        dtype: compute dtype, float32 or bfloat16.
        remat: what of each layer the backward pass keeps: "none" is computed again (all is kept), or "full" (only the
            layer's input is kept), "dots" (products with weights are), "names" (the outputs of attention and
            feed-forward are).
        attention: a decoder's implementation, "auto" (what the device supports), "xla", "blocks", "cudnn" or "splash".

    Raises:
        ModelError: an unsupported task, dtype, remat or attention, or an invalid configuration.
    """
    ours: ModelConfig = config_from_hf(config) if isinstance(config, Mapping) else config
    tasks, what = (DECODER_TASKS, "decoders") if isinstance(ours, LlamaConfig) else (ENCODER_TASKS, "encoders")
    if task not in tasks:
        raise ModelError(f"task: {task!r} is not supported; {what} are built for {', '.join(tasks)}")
    for name, value, choices in (("remat", remat, REMAT), ("attention", attention, IMPLEMENTATIONS)):
        if value not in choices:
            raise ModelError(f"{name}: {value!r} is not one of {', '.join(choices)}")
    if task == "masked_lm" and not ours.tie_word_embeddings:
        raise ModelError(
            "tie_word_embeddings: false is not supported for masked_lm, whose decoder is the word embedding"
        )
    if num_labels is not None:
        if isinstance(ours, LlamaConfig):
            raise ModelError(f"num_labels: {num_labels}, but a language model has no classes; leave it out")
        if num_labels < 1:
            raise ModelError(f"num_labels: {num_labels} (expected at least 1)")
        ours = ours.with_labels(num_labels)
    if task == "question_answering" and isinstance(ours, EncoderConfig):
        ours = replace(ours, num_labels=2, id2label=None)  # start and end, which nobody names
    dtype = jnp.dtype(dtype)
    if dtype.name not in COMPUTE_DTYPES:
        raise ModelError(f"dtype: {dtype.name} is not supported; compute in {' or '.join(COMPUTE_DTYPES)}")
    return Model(config=ours, task=task, dtype=dtype, remat=remat, attention=attention)


@dataclass(frozen=True)
class Structure:
    """A network without its arrays: the module outside its stack, one layer, and the parameters declared."""

    outer: Any
    stack: str
    layer: Any
    parameters: dict[Path, nnx.Param]


@lru_cache(maxsize=64)
def structure(model: Model) -> Structure:
    """What `init` draws and `apply` fills with arrays."""
    network = nnx.eval_shape(lambda: _network(model))
    parameters = declared(network)
    stack = next(name for name in STACKS if hasattr(network, name))
    layer = nnx.split(getattr(network, stack).layers)[0]
    delattr(network, stack)
    return Structure(nnx.split(network)[0], stack, layer, parameters)


def _network(model: Model) -> Any:
    """The network of a model's task, with arrays."""
    match model.config, model.task:
        case LlamaConfig() as config, "causal_lm":
            return CausalLMNetwork(config, dtype=model.dtype, implementation=model.attention)
        case EncoderConfig() as config, "classification":
            return ClassifierNetwork(config, dtype=model.dtype)
        case EncoderConfig() as config, "masked_lm":
            return MaskedLMNetwork(config, dtype=model.dtype)
        case EncoderConfig() as config, "token_classification":
            return TokenClassifierNetwork(config, dtype=model.dtype)
        case EncoderConfig() as config, "question_answering":
            return QuestionAnsweringNetwork(config, dtype=model.dtype)
    raise AssertionError(model.task)


def init_placed(model: Model, key: PRNGKeyArray, shardings: dict[str, Any]) -> dict[str, Any]:
    """What `model.init(key)` gives, each leaf drawn by itself and laid out by `shardings` (a tree like the parameters).

    Beside what lies there already, a device holds one leaf at a time whole, however large the model.
    """
    params: dict[str, Any] = {}
    for path, leaf in structure(model).parameters.items():
        sharding = take(shardings, path)
        alone = jax.jit(lambda key, path=path, leaf=leaf: take(draw(key, {path: leaf}), path), out_shardings=sharding)
        put(params, path, alone(key).block_until_ready())
    return params


def parameter_shapes(model: Model) -> dict[str, Any]:
    """The tree `init` returns, as shapes and dtypes."""
    return jax.eval_shape(model.init, jax.random.key(0))


def parameter_count(params: Params) -> int:
    """Number of parameters (works on arrays and on shapes)."""
    return sum(size_of(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_quantised))


def parameter_bytes(params: Params) -> int:
    """Bytes the parameters take (works on arrays and on shapes)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
