"""Teachers: where the signals a student learns from come from, inside the student's compiled step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxdistill.models import unstack_layers
from jaxdistill.models.outputs import Outputs
from jaxdistill.parallel import target_device
from jaxdistill.typing import Batch, Params, Signals

_UNSTACK_ON_CPU = 12
"""Up to so many layers, a teacher's are kept apart on CPU; more would only compile longer."""


class Teacher(Protocol):
    """Produces signals for a batch. Immutable; parameters are passed in and never receive a gradient."""

    def prepare(self, params: Params) -> Params:
        """The parameters as `signals` reads them fastest; called once, outside the step."""
        ...

    def signals(self, params: Params, batch: Batch, outputs: Outputs) -> Signals:
        """The named signals for `batch`, under stop_gradient and without dropout."""
        ...


def tokenizer_view(batch: Batch, tokenizer_index: int) -> Batch:
    """The batch as the `tokenizer_index`-th distinct tokenizer writes it (0: the student's own)."""
    if tokenizer_index == 0:
        return batch
    return {**batch, **batch["tokenizers"][str(tokenizer_index)]}


@dataclass(frozen=True)
class OnlineTeacher:
    """A model run on every batch.

    Attributes:
      model: a `models.Model`.
      tokenizer_index: which distinct tokenizer of the data it reads.
    """

    model: Any
    tokenizer_index: int = 0

    def prepare(self, params: Params) -> Params:
        """On CPU, layers apart: taking them from a stack would copy every one of them in every step."""
        layers = params.get("encoder", {}).get("layers")
        stacked = isinstance(layers, Mapping) and jax.tree.leaves(layers)[0].shape[0] <= _UNSTACK_ON_CPU
        return unstack_layers(params) if stacked and target_device().platform == "cpu" else params

    def signals(self, params: Params, batch: Batch, outputs: Outputs) -> Signals:
        """One forward pass without dropout; only what is asked for is computed."""
        # stopping the parameters as well keeps the whole forward pass out of the linearisation
        frozen = jax.lax.stop_gradient(params)
        return jax.lax.stop_gradient(
            dict(self.model.apply(frozen, tokenizer_view(batch, self.tokenizer_index), outputs))
        )


@dataclass(frozen=True)
class CachedTeacher:
    """Logits computed beforehand: params = {"logits": [N, C]}, one row per example_id.

    An example_id beyond the cache gives NaN, so that a cache of other data fails at once instead of teaching noise.
    """

    def prepare(self, params: Params) -> Params:
        """As they are."""
        return params

    def signals(self, params: Params, batch: Batch, outputs: Outputs) -> Signals:
        """Rows of the cache for the batch's examples (filler rows get the first row, which no term counts).

        Raises:
          ValueError: a signal other than `logits` is asked for.
        """
        if unknown := [name for name in outputs if name != "logits"]:
            raise ValueError(
                f"a cached teacher holds logits only, but the loss reads {', '.join(unknown)}; set teacher_cache: off"
            )
        rows = jnp.maximum(batch["example_id"], 0)
        logits = jnp.take(params["logits"], rows, axis=0, mode="fill", fill_value=jnp.nan)
        return {"logits": jax.lax.stop_gradient(logits)} if outputs else {}
