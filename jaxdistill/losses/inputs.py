"""What every loss asks of its arguments: shapes, dtypes and ranges, and the replacement of excluded positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar


def check_logits(name: str, logits: Float[Array, "*B V"]) -> None:
    """Raises ValueError unless `logits` is a floating array with a non-empty class axis."""
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {logits.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name} must have shape [..., classes] with at least one class, got {logits.shape}")


def check_same_shape(name: str, array: Float[Array, "*B V"], like_name: str, like: Float[Array, "*B V"]) -> None:
    """Raises ValueError unless both shapes are equal; a different class count gets its own advice."""
    if array.shape == like.shape:
        return
    advice = ""
    if array.ndim == like.ndim and array.shape[:-1] == like.shape[:-1]:
        advice = "; cut both to the vocabulary they share (padding entries only), never fill with zeros"
    raise ValueError(
        f"{name} and {like_name} must have the same shape, got {array.shape} and {like.shape} (nothing is broadcast)"
        + advice
    )


def check_where(where: Bool[Array, "*B"] | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `where` is None or a bool array of the result's shape."""
    if where is None:
        return
    if where.dtype != jnp.bool_:
        raise ValueError(f"where must be bool (True = counted), got {where.dtype}; use mask.astype(bool)")
    if where.shape != shape:
        raise ValueError(f"where must have the result's shape {shape}, got {where.shape}")


def check_labels(labels: Int[Array, "*B"], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `labels` holds one integer class per position."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integer class indices, got {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(f"labels must have the logits' leading shape {shape}, got {labels.shape}")


def is_static(value: object) -> bool:
    """Whether `value` is a plain number, whose range can be checked without waiting for a device."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def check_fraction(name: str, value: float | Scalar) -> None:
    """Raises ValueError unless a plain number lies in [0, 1]; arrays are let through."""
    if isinstance(value, (bool, str)) or value is None:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    if is_static(value) and not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def as_temperature(temperature: float | Scalar) -> Scalar:
    """The temperature as a float32 scalar, a constant for differentiation.

    Raises:
        ValueError: a plain number that is not positive and finite, or an array that is not a scalar.
    """
    if is_static(temperature):
        if not (math.isfinite(temperature) and temperature > 0):  # pyright: ignore[reportArgumentType]
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
    elif not isinstance(temperature, (jax.Array, np.ndarray)):
        raise ValueError(f"temperature must be a number or a scalar array, got {temperature!r}")
    elif temperature.shape != ():
        raise ValueError(f"temperature must be a scalar, got shape {temperature.shape}")
    return jax.lax.stop_gradient(jnp.asarray(temperature, dtype=jnp.float32))


def neutral_where(where: Bool[Array, "*B"] | None, *logits: Float[Array, "*B V"]) -> Sequence[Float[Array, "*B V"]]:
    """Float32 logits with excluded positions set to 0 before any arithmetic: NaN behind a mask must not leak."""
    wide = [array.astype(jnp.float32) for array in logits]
    if where is None:
        return wide
    return [jnp.where(where[..., None], array, 0.0) for array in wide]


def neutral_pair(
    student_logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"], where: Bool[Array, "*B"] | None
) -> Sequence[Float[Array, "*B V"]]:
    """`neutral_where` of a student's and a teacher's logits.

    Raises:
        ValueError: shapes differ, or a dtype is wrong.
    """
    check_logits("student_logits", student_logits)
    check_logits("teacher_logits", teacher_logits)
    check_same_shape("student_logits", student_logits, "teacher_logits", teacher_logits)
    check_where(where, student_logits.shape[:-1])
    return neutral_where(where, student_logits, teacher_logits)


def zero_where(where: Bool[Array, "*B"] | None, values: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """`values`, and 0 at excluded positions."""
    return values if where is None else jnp.where(where, values, 0.0)
