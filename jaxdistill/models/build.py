"""`Model`: a network as two pure functions, init and apply, over a plain nested dictionary of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.errors import ModelError
from jaxdistill.models.bert import ClassifierNetwork, MaskedLMNetwork
from jaxdistill.models.config import EncoderConfig, config_from_hf, positions
from jaxdistill.models.dropout import example_seeds
from jaxdistill.models.init import Path, declared, draw
from jaxdistill.models.outputs import Outputs, parse
from jaxdistill.models.stack import STACKS, Layers
from jaxdistill.typing import Batch, Params, PRNGKeyArray, Signals

TASKS = {"classification": ClassifierNetwork, "masked_lm": MaskedLMNetwork}
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Model:
    """An encoder for a task: no arrays, hashable, its functions pure. `build` makes and checks one.

    dtype is that of the arithmetic; parameters are float32, and so are softmax, layer norm, logits and their sums.
    """

    config: EncoderConfig
    task: str
    dtype: jnp.dtype

    @property
    def num_labels(self) -> int:
        """Classes of the classifier (meaningless for a masked LM)."""
        return self.config.num_labels

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
                example_id int32 [B] for dropout.
            outputs: names, or {name: layers} (None = all layers). logits [B, C] or [B, S, V] float32;
                last_hidden [B, S, D]; head {input, kernel, bias}, whose product the logits are;
                hidden_states [L+1, B, S, D], of which 0 are the embeddings; attentions and attention_scores (before
                mask and softmax) [L, B, N, S, S] float32; qkv [L, 3, B, S, N, H].
            key: for dropout; None means none. Each example's masks depend on the key and its example_id alone.

        Raises:
            ModelError: unknown outputs, a batch without ids or mask, a sequence longer than the positions, or dropout
                without example_id.
        """
        if absent := [name for name in ("input_ids", "attention_mask") if name not in batch]:
            raise ModelError(f"batch: {' and '.join(absent)} missing; it needs input_ids and attention_mask [B, S]")
        request = parse(outputs, self.config.num_hidden_layers)
        length = batch["input_ids"].shape[1]
        if length > positions(self.config):
            raise ModelError(
                f"input_ids: {length} tokens a sequence, but the model has {positions(self.config)} positions; "
                "set max_length (and truncate) so that sequences fit"
            )
        if key is not None and "example_id" not in batch:
            raise ModelError("batch: dropout needs example_id [B], from which each example's masks are drawn")
        seeds = None if key is None else example_seeds(key, batch["example_id"])
        parts = structure(self)
        outer = {name: leaf for name, leaf in params.items() if name != parts.stack}
        network = nnx.merge(parts.outer, nnx.State(outer))
        layers = Layers(parts.layer, params[parts.stack]["layers"], self.config.num_hidden_layers)
        return network(batch, layers, request=request, seeds=seeds)


def build(
    config: EncoderConfig | Mapping[str, Any],
    *,
    task: str = "classification",
    num_labels: int | None = None,
    dtype: Any = jnp.float32,
) -> Model:
    """A model of `config` (ours, or a dictionary as `config_from_hf` reads it) for `task`.

    Args:
        task: "classification" or "masked_lm".
        num_labels: classes; default the configuration's.
        dtype: compute dtype, float32 or bfloat16.

    Raises:
        ModelError: an unsupported task or dtype, or an invalid configuration.
    """
    config = config if isinstance(config, EncoderConfig) else config_from_hf(config)
    if task not in TASKS:
        raise ModelError(f"task: {task!r} is not supported; encoders are built for {', '.join(TASKS)}")
    if task == "masked_lm" and not config.tie_word_embeddings:
        raise ModelError(
            "tie_word_embeddings: false is not supported for masked_lm, whose decoder is the word embedding"
        )
    if num_labels is not None:
        if num_labels < 1:
            raise ModelError(f"num_labels: {num_labels} (expected at least 1)")
        config = config.with_labels(num_labels)
    dtype = jnp.dtype(dtype)
    if dtype.name not in COMPUTE_DTYPES:
        raise ModelError(f"dtype: {dtype.name} is not supported; compute in {' or '.join(COMPUTE_DTYPES)}")
    return Model(config=config, task=task, dtype=dtype)


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
    network = nnx.eval_shape(lambda: TASKS[model.task](model.config, dtype=model.dtype))
    parameters = declared(network)
    stack = next(name for name in STACKS if hasattr(network, name))
    layer = nnx.split(getattr(network, stack).layers)[0]
    delattr(network, stack)
    return Structure(nnx.split(network)[0], stack, layer, parameters)


def parameter_shapes(model: Model) -> dict[str, Any]:
    """The tree `init` returns, as shapes and dtypes."""
    return jax.eval_shape(model.init, jax.random.key(0))


def parameter_count(params: Params) -> int:
    """Number of parameters (works on arrays and on shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_bytes(params: Params) -> int:
    """Bytes the parameters take (works on arrays and on shapes)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
