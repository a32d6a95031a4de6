"""Dense layers, norms, activations, table look-up: float32 parameters and statistics whatever the compute dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.init import constant, weight
from jaxdistill.models.quantised import is_quantised, quantised_product
from jaxdistill.parallel.rules import mesh_in_context
from jaxdistill.parallel.target import target_device
from jaxdistill.typing import Array, Float, Int


class Dense(nnx.Module):
    """x · kernel + bias over the last `contract` axes of x; kernel [*inputs, *outputs], bias [*outputs] or none."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        stddev: float,
        dtype: jnp.dtype,
        use_bias: bool = True,
    ) -> None:
        self.kernel = weight((*inputs, *outputs), stddev=stddev)
        if use_bias:
            self.bias = constant(outputs, 0.0)
        self.use_bias = use_bias
        self.contract = len(inputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Inputs and outputs of several axes are computed as one matrix product."""
        bias = self.bias[...] if self.use_bias else None
        return affine(x, self.kernel[...], bias, contract=self.contract, dtype=self.dtype)


def on_one_cpu() -> bool:
    """Whether what is traced is for a CPU, not for devices that share its arrays."""
    return mesh_in_context() is None and target_device().platform == "cpu"


def affine(x: Array, kernel: Array, bias: Array | None, *, contract: int = 1, dtype: jnp.dtype) -> Array:
    """x [*B, *I] · kernel [*I, *O] + bias [*O] in `dtype`, as one matrix product."""
    if is_quantised(kernel):
        product = quantised_product(x, kernel, contract=contract, dtype=dtype)
        return (
            product if bias is None else product + bias.reshape((1,) * (x.ndim - contract) + bias.shape).astype(dtype)
        )
    if mesh_in_context() is not None:  # axes made one would hide from the compiler which of them devices share
        product = jnp.tensordot(x.astype(dtype), kernel.astype(dtype), axes=contract)
        if bias is not None:
            product = product + bias.reshape((1,) * (x.ndim - contract) + bias.shape).astype(dtype)
        return product
    batch, outputs = x.shape[: x.ndim - contract], kernel.shape[contract:]
    width = math.prod(kernel.shape[:contract])
    flat = _product(x.reshape(-1, width).astype(dtype), kernel.reshape(width, -1).astype(dtype))
    if bias is not None:
        flat = flat + bias.reshape(1, -1).astype(dtype)
    return flat.reshape(*batch, *outputs)


def _product(x: Float[Array, "T I"], kernel: Float[Array, "I O"]) -> Float[Array, "T O"]:
    """x · kernel. A CPU computes the kernel's gradient with its longer side innermost, up to 1.4 times as fast."""
    if kernel.shape[0] <= kernel.shape[1] or not on_one_cpu():
        return x @ kernel
    return jax.lax.dot_general(x, _turned(kernel), (((1,), (1,)), ((), ())))


@jax.custom_vjp
def _turned(kernel: Float[Array, "I O"]) -> Float[Array, "O I"]:
    """The transpose. XLA would turn its gradient's product to write [I, O]; the barrier has it turn the result."""
    return kernel.T


_turned.defvjp(lambda kernel: (kernel.T, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient).T,))


class LayerNorm(nnx.Module):
    """Layer norm over the last axis in float32, centred before it is squared; the result is in `dtype`."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype) -> None:
        self.scale = constant((width,), 1.0)
        self.bias = constant((width,), 0.0)
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """(x − mean) / √(variance + eps) · scale + bias."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        normed = _standardise(x.astype(jnp.float32), self.eps)
        scale, bias = (leaf[...].astype(jnp.float32).reshape(shape) for leaf in (self.scale, self.bias))
        return (normed * scale + bias).astype(self.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardise(x: Array, eps: float) -> Array:
    """x to mean 0 and variance 1 along its last axis."""
    return _moments(x, eps)[0]


@_standardise.defjvp
def _standardise_jvp(eps: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The projection off the mean and off the result: two reductions backwards, and x is not kept."""
    normed, scale = _moments(primals[0], eps)
    tangent = tangents[0]
    along = jnp.mean(tangent * normed, axis=-1, keepdims=True)
    return normed, scale * (tangent - jnp.mean(tangent, axis=-1, keepdims=True) - normed * along)


def _moments(x: Array, eps: float) -> tuple[Array, Array]:
    """Standardised x and 1/√(variance + eps); centred before squaring, which E[x²] − E[x]² is too inexact for."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return centred * scale, scale


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis in float32 (arXiv:1910.07467); the result is in `dtype`."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype) -> None:
        self.scale = constant((width,), 1.0)
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """x / √(mean of squares + eps) · scale."""
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (_to_unit_size(x.astype(jnp.float32), self.eps) * scale).astype(self.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _to_unit_size(x: Array, eps: float) -> Array:
    """x to mean square 1 along its last axis."""
    return x * _inverse_size(x, eps)


@_to_unit_size.defjvp
def _to_unit_size_jvp(eps: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The projection off the result: one reduction backwards, and x is not kept."""
    scale = _inverse_size(primals[0], eps)
    sized, tangent = primals[0] * scale, tangents[0]
    return sized, scale * (tangent - sized * jnp.mean(tangent * sized, axis=-1, keepdims=True))


def _inverse_size(x: Array, eps: float) -> Array:
    """1/√(mean of squares + eps)."""
    return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def gather(table: Float[Array, "V D"], ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Rows of the table; ids out of range read the nearest row (their own check is the data's)."""
    return jnp.take(table, ids, axis=0, mode="clip")


def activation(name: str) -> Callable[[Array], Array]:
    """The activation Hugging Face calls `name`."""
    match name:
        case "gelu":
            return _gelu
        case "gelu_new" | "gelu_pytorch_tanh":
            return lambda x: jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu
        case "silu":
            return _silu
    raise AssertionError(name)


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    """x · Φ(x), in float32 inside.

    The select, which changes nothing, ends the kernel that XLA's CPU backend would make of a teacher's layer from its
    attention to its output, in which erf takes longer than in a loop of its own: an eighth of that kernel's time.
    """
    result = (x.astype(jnp.float32) * _normal_cdf(x)).astype(x.dtype)
    return jnp.where(jnp.isnan(x), x, result) if on_one_cpu() else result


@_gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Value and slope Φ(x) + x·φ(x) from one erf: the slope is all that is kept for the backward pass."""
    x, cdf = primals[0].astype(jnp.float32), _normal_cdf(primals[0])
    slope = cdf + x * jnp.exp(-0.5 * x * x) * (2.0 * math.pi) ** -0.5
    dtype = primals[0].dtype
    return (x * cdf).astype(dtype), slope.astype(dtype) * tangents[0]


@jax.custom_jvp
def _silu(x: Array) -> Array:
    """x · σ(x), in float32 inside."""
    return (x.astype(jnp.float32) * jax.nn.sigmoid(x.astype(jnp.float32))).astype(x.dtype)


@_silu.defjvp
def _silu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Value and slope σ(x)·(1 + x·(1 − σ(x))) from one σ: the slope is all that is kept for the backward pass."""
    x = primals[0].astype(jnp.float32)
    share = jax.nn.sigmoid(x)
    dtype = primals[0].dtype
    return (x * share).astype(dtype), (share * (1.0 + x * (1.0 - share))).astype(dtype) * tangents[0]


def _normal_cdf(x: Array) -> Array:
    """Φ(x) = (1 + erf(x/√2)) / 2 in float32; XLA's erf is one rational function where its erfc has two branches."""
    return 0.5 + 0.5 * jax.lax.erf(x.astype(jnp.float32) * 2.0**-0.5)
