"""Teachers with the kernels of their layers in 8 bits, by qwix: a scale for every output channel.

On accelerators activations are quantised too, a scale for every token, and the products are 8-bit ones: a teacher's
forward pass has thousands of tokens a step and is bound by its products, which such hardware makes twice as fast as
bfloat16 ones. On a CPU, which has no fast 8-bit product here, the weights alone are 8-bit, and the products those of
the compute dtype. Embeddings, norms, biases and heads stay as they are.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdistill.errors import ConfigError
from jaxdistill.parallel.target import target_device
from jaxdistill.typing import Array, Float, Params

Quantisation = Literal["int8", "fp8"]

_TYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


def require_qwix() -> Any:
    """The `qwix` module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise ConfigError(
            "precision.teacher: 8-bit teachers need the qwix package, which is not installed; "
            "`pip install 'jaxdistill[quant]'` or write bfloat16"
        ) from error
    return qwix


def is_quantised(leaf: Any) -> bool:
    """Whether a parameter is 8-bit values with scales rather than an array."""
    return hasattr(leaf, "qvalue")


def describe_quantisation(kind: Quantisation) -> str:
    """What is 8-bit on the device that is traced for."""
    return f"{kind} weights and activations" if _activations_too() else f"{kind} weights"


def quantise(params: Params, kind: Quantisation) -> dict[str, Any]:
    """The parameters with the kernels of their layers quantised; can be jitted.

    Args:
        params: of a `Model`, layers stacked.
        kind: `int8`, or `fp8` (e4m3), both symmetric, from each channel's largest absolute value.

    Raises:
        ConfigError: qwix is not installed.
    """
    qwix = require_qwix()

    def leaf(path: tuple[Any, ...], array: Array) -> Any:
        keys = [entry.key for entry in path]
        if "layers" not in keys or keys[-1] != "kernel":
            return array
        inputs = range(1, 1 + _input_axes(keys))
        outputs = [axis for axis in range(array.ndim) if axis not in inputs]
        wide = array.astype(jnp.float32)
        return qwix.quantize(wide, _TYPES[kind], channelwise_axes=outputs, scale_dtype=jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, dict(params))


def quantised_product(x: Float[Array, "*B I"], kernel: Any, *, contract: int, dtype: jnp.dtype) -> Float[Array, "*B O"]:
    """x [*B, *I] · kernel [*I, *O] in `dtype`, the kernel being what `quantise` makes of one layer's."""
    batch = x.ndim - contract
    axes = ((tuple(range(batch, x.ndim)), tuple(range(contract))), ((), ()))
    if _activations_too():
        qwix = require_qwix()
        rows = qwix.quantize(x.astype(jnp.float32), kernel.qtype, channelwise_axes=range(batch))
        with jax.numpy_dtype_promotion("standard"):  # qwix scales int32 sums by float32
            return qwix.dot_general(rows, kernel, axes, preferred_element_type=jnp.float32).astype(dtype)
    # 8-bit values are exact in bfloat16 too, and the scales, one a column, come after the product
    product = jax.lax.dot_general(
        x.astype(dtype), kernel.qvalue.astype(dtype), axes, preferred_element_type=jnp.float32
    )
    scale = kernel.scale.reshape((1,) * batch + kernel.shape[contract:])
    return (product * scale).astype(dtype)


def shardings_like(params: Any, shardings: Any) -> Any:
    """Shardings of plain parameters as those of `params`, some of which may be quantised."""

    def leaf(own: Any, sharding: Any) -> Any:
        if not is_quantised(own):
            return sharding
        spec = (*sharding.spec, *(None,) * (len(own.shape) - len(sharding.spec)))
        # a scale has no axis where the product sums
        kept = [axes if size > 1 else None for axes, size in zip(spec, own.scale.shape, strict=True)]
        scale = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*kept))
        return jax.tree.unflatten(jax.tree.structure(own), [sharding, scale])

    return jax.tree.map(leaf, params, shardings, is_leaf=is_quantised)


def size_of(leaf: Any) -> int:
    """Numbers in a parameter, scales not counted."""
    return math.prod(leaf.shape)


def _input_axes(path: list[str]) -> int:
    """Axes of a layer's kernel that its input has: heads and their channels for the attention's output."""
    return 2 if path[-3:-1] == ["attention", "output"] else 1


def _activations_too() -> bool:
    return target_device().platform != "cpu"
