"""The axis legend and the array types every signature in this package is written in.

Axes, one letter each, the same everywhere: B batch, S sequence, D model width, F feed-forward width, N attention heads,
K key/value heads, H head size, V vocabulary, C classes, L layers, P factorised embedding width. `*B` is any number of
leading axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

Params: TypeAlias = Mapping[str, Any]
"""Nested dictionary of parameter arrays; transformer layers are stacked on a leading axis L."""

Batch: TypeAlias = Mapping[str, Any]
"""Dictionary of arrays with a leading batch axis: input_ids, attention_mask, token_type_ids, labels, example_id."""

Signals: TypeAlias = Mapping[str, Any]
"""What a model was asked for, by name: logits, last_hidden, hidden_states, attentions, …"""

__all__ = ["Array", "Batch", "Bool", "Float", "Int", "PRNGKeyArray", "Params", "Scalar", "Signals"]
