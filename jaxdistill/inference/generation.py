"""Continuations token by token, each from a whole forward pass: plain, correct, and not meant for serving."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.typing import Array, Float, Int, Params, PRNGKeyArray


@partial(jax.jit, static_argnames=("model", "sampled"))
def continue_tokens(
    params: Params,
    ids: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    keys: PRNGKeyArray,
    *,
    model: Any,
    end_ids: Int[Array, " E"],
    max_new_tokens: int | Int[Array, ""],
    temperature: float | Float[Array, ""],
    sampled: bool,
) -> tuple[Int[Array, "B W"], Int[Array, " B"]]:
    """Appends tokens to prompts until each has ended, has `max_new_tokens` more, or fills the window.

    Args:
      params: of `model`.
      ids: int32, prompts from the left; the rest is overwritten or never seen.
      lengths: int32, tokens of each prompt; 0 for a row that is none and stays as it is.
      keys: [B], one a row: what is sampled for a row depends on no other.
      model: a decoder (`models.Model`).
      end_ids: int32, tokens after which a continuation has ended.
      max_new_tokens: at most so many for each row.
      temperature: what logits are divided by before a token is sampled.
      sampled: draw from softmax(logits / temperature); otherwise the most likely token is taken.

    Returns:
      The rows with their continuations, and their lengths, the end token included.
    """
    places = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]

    def is_going_on(state: tuple[Array, ...]) -> Array:
        _, _, going, count = state
        return (count < max_new_tokens) & going.any()

    def append(state: tuple[Array, ...]) -> tuple[Array, ...]:
        ids, lengths, going, count = state
        logits = next_logits(model, params, ids, lengths, places)
        if sampled:
            draws = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, count)
            tokens = jax.vmap(jax.random.categorical)(draws, logits / temperature)
        else:
            tokens = jnp.argmax(logits, -1)
        tokens = tokens.astype(jnp.int32)
        ids = jnp.where((places == lengths[:, None]) & going[:, None], tokens[:, None], ids)
        lengths = lengths + going.astype(jnp.int32)
        going = going & ~jnp.isin(tokens, end_ids) & (lengths < ids.shape[1])
        return ids, lengths, going, count + 1

    going = (lengths > 0) & (lengths < ids.shape[1])
    ids, lengths, _, _ = jax.lax.while_loop(is_going_on, append, (ids, lengths, going, jnp.int32(0)))
    return ids, lengths


def next_logits(model: Any, params: Params, ids: Array, lengths: Array, places: Array) -> Float[Array, "B V"]:
    """Logits after each row's last token, float32; `places` is 0 … W − 1, and what lies behind the last is padding."""
    batch = {"input_ids": ids, "attention_mask": (places < lengths[:, None]).astype(jnp.int32)}
    head = model.apply(params, batch, ("head",))["head"]
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(head["input"], last, axis=1)[:, 0]
    return jnp.dot(hidden, head["kernel"].astype(hidden.dtype), preferred_element_type=jnp.float32)
