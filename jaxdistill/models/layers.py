"""Dense layers, layer norm and activations, with float32 parameters and statistics whatever the compute dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.typing import Array, Float


class Dense(nnx.Module):
    """x · kernel + bias over the last `contract` axes of x; kernel [*inputs, *outputs], bias [*outputs]."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...], *, stddev: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.kernel = nnx.Param(normal(rngs, (*inputs, *outputs), stddev))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.contract = len(inputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Inputs and outputs of several axes are computed as one matrix product."""
        return affine(x, self.kernel[...], self.bias[...], contract=self.contract, dtype=self.dtype)


def affine(x: Array, kernel: Array, bias: Array, *, contract: int = 1, dtype: jnp.dtype) -> Array:
    """x [*B, *I] · kernel [*I, *O] + bias [*O] in `dtype`, as one matrix product."""
    batch, outputs = x.shape[: x.ndim - contract], kernel.shape[contract:]
    width = math.prod(kernel.shape[:contract])
    flat = x.reshape(-1, width).astype(dtype) @ kernel.reshape(width, -1).astype(dtype)
    return (flat + bias.reshape(1, -1).astype(dtype)).reshape(*batch, *outputs)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis in float32, centred before it is squared; the result is in `dtype`."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """(x − mean) / √(variance + eps) · scale + bias."""
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (normed * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(self.dtype)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float) -> Array:
    """float32 normal values of standard deviation `stddev`."""
    return jax.random.normal(rngs.params(), shape, jnp.float32) * stddev


def activation(name: str) -> Callable[[Array], Array]:
    """The activation Hugging Face calls `name`."""
    match name:
        case "gelu":
            return lambda x: jax.nn.gelu(x, approximate=False)
        case "gelu_new" | "gelu_pytorch_tanh":
            return lambda x: jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu
    raise AssertionError(name)
