"""Distillation from last hidden states: both models' LM heads, the divergence, cross-entropy and z-loss in one pass.

Tokens are taken in chunks, and a chunk's logits live only until its share of the gradients is formed: nothing of the
size tokens × vocabulary ever exists, for either model. See `tile.py` for what happens to a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, Scalar

from jaxdistill.losses.heads import (
    Arrays,
    Head,
    Heads,
    axis_size,
    check_model,
    checked_teachers,
    one_vocabulary,
    stored_head,
)
from jaxdistill.losses.inputs import as_temperature, check_fraction, check_labels, check_where, is_static
from jaxdistill.losses.reduce import AxisName
from jaxdistill.losses.tile import Divergence, Shard, divergence_terms, label_terms
from jaxdistill.losses.topk import TopK
from jaxdistill.losses.topk_tile import checked_top_k, neutral_top_k, top_k_terms
from jaxdistill.losses.varying import equally_varying, varying_like

# Of one float32 tile of logits, chunk × (local) vocabulary, of which a handful are alive at a time. Large enough that
# the head's gradient, read and written once a chunk, does not bound an accelerator: 512 tokens at 128,256 classes.
_TILE_BYTES = 2**28
_CHUNKS, _FEWEST_TOKENS = 8, 64
# Of what a CPU adds to the head's gradient at a time, and of the logits it makes gradients of at a time.
_PIECE_BYTES, _CACHED_BYTES = 2**23, 2**20
_PER_TOKEN = ("top_k", "labels", "labelled", "counted")


def fused_linear_distillation(
    student_hidden: Float[Array, "N D"],
    student_head: Head,
    teacher_hidden: Arrays,
    teacher_head: Heads,
    labels: Int[Array, " N"],
    *,
    temperature: float | Scalar,
    kd_weight: float | Scalar,
    ce_weight: float | Scalar,
    z_weight: float | Scalar = 0.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    teacher_weights: Sequence[float] | Float[Array, " M"] | None = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    where: Bool[Array, " N"] | None = None,
    top_k: TopK | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    platform: str | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Σ over tokens of kd_weight · T²·divergence + ce_weight · CE + z_weight · z², never building [N, V] logits.

    With logits = hidden @ head of either model: the divergence is `forward_kl`, `reverse_kl` or `jensen_shannon` at
    `temperature`, as accurate as those near equality; CE is `cross_entropy` with the labels, and z the student's
    log-normaliser, both at T = 1. The gradients of `student_hidden` and `student_head` are formed in the same pass, so
    that the matrix products are the dense loss's, 6·N·D_s·V + 2·N·D_t·V operations; everything else is a constant.
    Reverse mode only. What a weight multiplies must be known here: to divide each term by a count of its own, divide
    the weights by it.

    Args:
        student_hidden: [N, D_s] last hidden states, reshaped from [B, S, D_s]. bfloat16 is multiplied in bfloat16 and
            summed in float32, any other float dtype is multiplied in float32.
        student_head: [D_s, V], or a `Table` of [V, D_s], converted to the dtype that is multiplied; its gradient is
            summed in float32 and has the head's own dtype. A bias is one more row, and a hidden channel of ones.
        teacher_hidden: [N, D_t], or one for each of M teachers, of any widths; None without a divergence.
        teacher_head: [D_t, V] or a `Table` of [V, D_t], or one for each of M teachers, of the student's vocabulary.
        labels: [N] integer classes of the whole vocabulary, already shifted; `ignore_index` = none. Any other integer
            outside of it makes the loss NaN.
        temperature: positive number, or a scalar array (which may be traced); a constant.
        kd_weight, ce_weight, z_weight: numbers, or scalar arrays (which may be traced); constants. A term whose weight
            is a plain 0 is not computed.
        divergence: which one.
        beta: `jensen_shannon`'s: plain number in [0, 1]; 0 means `forward_kl` and 1 `reverse_kl`.
        teacher_weights: M non-negative numbers, or a (possibly traced) array [M], for the average of the teachers'
            probabilities; divided by their sum. None weighs all alike.
        vocab_size: how many classes there are; head columns beyond are padding, left out on both sides. Needed if the
            heads are padded differently. None: all columns are classes.
        ignore_index: labels that are none.
        where: [N] bool, the tokens that the divergence and the z-loss count; CE counts those of them that have a label.
            None counts every token that has one. Nothing behind an excluded token, NaN included, has any effect.
        top_k: a stored teacher in the place of hidden states and head (None, then): ids and logits [N, K] and the
            log-normaliser [N] at `temperature`. The divergence is `top_k_forward_kl`.
        chunk_size: tokens at a time; None: an eighth of them (of fewer than 512, a quarter up to 64), and as many as
            keep one float32 tile of logits within 256 MiB.
        axis_name: mesh axis (or axes) over which the vocabulary is spread, under `shard_map` or `pmap`: heads are then
            [D, V / devices], in the axis's order, and everything else is whole. Only numbers per token cross it, and
            one sum of [N, D_s], the gradient of `student_hidden`.
        platform: what it is compiled for, such as "tpu", where that is not JAX's default: a CPU takes smaller pieces.

    Returns:
        (loss_sum, metrics): float32 scalar; and {"kd", "ce", "z": the unweighted sums, "count": tokens counted by
        `where`}, float32 scalars without gradient, 0 for a term that is not computed. To be divided by the global
        count after adding up over micro-batches and data-parallel devices.

    Raises:
        ValueError: shapes or vocabularies do not fit, a dtype is wrong, or a number is out of its range.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, https://arxiv.org/abs/1503.02531
        Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, https://arxiv.org/abs/2410.10989
        Chowdhery et al., PaLM (z-loss), https://arxiv.org/abs/2204.02311
    """
    weights = {"kd": kd_weight, "ce": ce_weight, "z": z_weight}
    terms = tuple(name for name, weight in weights.items() if not (is_static(weight) and weight == 0))
    student = stored_head(student_head)
    check_model("student_hidden", "student_head", student_hidden, student)
    tokens = student_hidden.shape[0]
    check_labels(labels, (tokens,))
    check_where(where, (tokens,))
    stored = (
        checked_top_k(top_k, student.classes * axis_size(axis_name), tokens, divergence)
        if "kd" in terms and top_k is not None
        else None
    )
    online = "kd" in terms and stored is None
    teachers = checked_teachers(teacher_hidden, teacher_head, tokens) if online else []
    student, heads, classes = one_vocabulary(student, [head for _, head in teachers], vocab_size, axis_name)
    labels = labels.astype(jnp.int32)
    labelled = labels != ignore_index
    counted = labelled if where is None else where
    traced_weights = isinstance(teacher_weights, jax.Array)
    plain_weights = None if teacher_weights is None or traced_weights else tuple(map(float, teacher_weights))
    constants = {
        "teachers": [hidden for hidden, _ in teachers],
        "heads": [
            head.array.astype(_multiplied_dtype(states)) for (states, _), head in zip(teachers, heads, strict=True)
        ],
        "top_k": None if stored is None else neutral_top_k(stored, counted),
        "labels": jnp.where(labelled & counted, labels, 0),
        "labelled": labelled & counted,
        "counted": counted,
        "temperature": as_temperature(temperature),
        "weights": {name: _as_weight(f"{name}_weight", weights[name]) for name in terms},
        "teacher_weights": teacher_weights if traced_weights else None,
    }
    plan = _Plan(
        *_divergence(divergence, beta),
        terms=terms,
        teacher_weights=plain_weights,
        vocab_size=classes,
        chunk_size=_chunk_size(chunk_size, tokens, student.classes),
        axes=(student.axis, *(head.axis for head in heads)),
        axis_name=axis_name,
        small_pieces=(platform or jax.default_backend()) == "cpu",
        hidden_dtype=student_hidden.dtype,
        head_dtype=student.array.dtype,
    )
    hidden, head, constants = equally_varying((student_hidden, student.array, stop_gradient(constants)))
    loss, sums = _fused(plan, hidden, head, constants)  # pyright: ignore[reportGeneralTypeIssues]
    if axis_name is not None:
        loss, sums = jax.lax.psum((loss, sums), axis_name)
    count = jnp.sum(counted, dtype=jnp.int32).astype(jnp.float32)
    return loss, {**{name: stop_gradient(sums[name]) for name in ("kd", "ce", "z")}, "count": count}


class _Plan(NamedTuple):
    """What is static, and so part of the compiled program; `axes` are those of the heads' vocabulary."""

    divergence: Divergence
    beta: float
    terms: tuple[str, ...]
    teacher_weights: tuple[float, ...] | None
    vocab_size: int
    chunk_size: int
    axes: tuple[int, ...]
    axis_name: AxisName | None
    small_pieces: bool
    hidden_dtype: np.dtype
    head_dtype: np.dtype


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _fused(plan: _Plan, hidden: Array, head: Array, constants: dict[str, Any]) -> tuple[Scalar, dict[str, Scalar]]:
    """The weighted sum and the terms' own, on the first shard of the vocabulary; 0 on the others."""

    def add(sums: dict[str, Array], chunk: dict[str, Any]) -> tuple[dict[str, Array], None]:
        chunk_sums, _, _ = _chunk_terms(plan, narrow, constants, chunk)
        return jax.tree.map(jnp.add, sums, chunk_sums), None

    narrow = head.astype(_multiplied_dtype(hidden))
    sums, _ = jax.lax.scan(add, varying_like(head, _no_sums()), _chunks(plan, hidden, constants))
    return _totals(plan, sums, constants)


@partial(jax.jit, static_argnums=0)
def _fused_forward(plan: _Plan, hidden: Array, head: Array, constants: dict[str, Any]):
    """Both gradients are what is kept for the backward pass, which only multiplies them."""

    def add(carry: tuple[Any, Array], chunk: dict[str, Any]) -> tuple[tuple[Any, Array], Array]:
        sums, head_gradient = carry
        chunk_sums, to_logits, rows = _chunk_terms(plan, narrow, constants, chunk)
        to_logits = to_logits.astype(rows.dtype)
        head_gradient = add_to_head(axis, head_gradient, rows, to_logits)
        to_rows = _product(to_logits, narrow, 1, axis)
        return (jax.tree.map(jnp.add, sums, chunk_sums), head_gradient), to_rows

    axis = plan.axes[0]
    add_to_head = _add_in_pieces if plan.small_pieces else _add_whole
    narrow = head.astype(_multiplied_dtype(hidden))
    start = varying_like(head, (_no_sums(), jnp.zeros(head.shape, jnp.float32)))
    (sums, head_gradient), to_rows = jax.lax.scan(add, start, _chunks(plan, hidden, constants))
    hidden_gradient = to_rows.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return _totals(plan, sums, constants), (hidden_gradient, head_gradient)


def _add_whole(axis: int, total: Array, rows: Array, to_logits: Array) -> Array:
    """A chunk's part of the head's gradient added to the others'; an accelerator multiplies straight into the sum."""
    return total + (_product(rows, to_logits, 0, 0) if axis == 1 else _product(to_logits, rows, 0, 0))


def _add_in_pieces(axis: int, total: Array, rows: Array, to_logits: Array) -> Array:
    """The same, some classes at a time: a CPU writes out the product first, which would be as large as the head."""
    classes = total.shape[axis]
    size = min(classes, max(1, _PIECE_BYTES // (4 * total.shape[1 - axis])))

    def add(start: Any, total: Array, *, size: int) -> Array:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        added = _add_whole(axis, cut(total, axis=axis), rows, cut(to_logits, axis=1))
        return jax.lax.dynamic_update_slice_in_dim(total, added, start, axis)

    whole, rest = divmod(classes, size)
    total = jax.lax.fori_loop(0, whole, lambda index, total: add(index * size, total, size=size), total)
    return add(whole * size, total, size=rest) if rest else total


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """The matrix product over an axis of each, in float32: no transposed operand is ever written out."""
    contracted = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contracted, preferred_element_type=jnp.float32)


def _fused_backward(plan: _Plan, gradients: tuple[Array, Array], cotangents: tuple[Array, Any]):
    to_loss, _ = cotangents
    hidden, head = gradients
    return (to_loss * hidden).astype(plan.hidden_dtype), (to_loss * head).astype(plan.head_dtype), None


_fused.defvjp(_fused_forward, _fused_backward)


def _chunks(plan: _Plan, hidden: Array, constants: dict[str, Any]) -> dict[str, Any]:
    """All that is per token, as [chunks, chunk, ...], filled up with tokens that do not count."""
    tokens, size = hidden.shape[0], plan.chunk_size
    count = -(-tokens // size)

    def split(array: Array) -> Array:
        filled = jnp.pad(array, ((0, count * size - tokens), *((0, 0),) * (array.ndim - 1)))
        return filled.reshape(count, size, *array.shape[1:])

    per_token = {name: constants[name] for name in ("teachers", *_PER_TOKEN)}
    return jax.tree.map(split, {"student": hidden, **per_token})


def _chunk_terms(plan: _Plan, head: Array, constants: dict[str, Any], chunk: dict[str, Any]):
    """One chunk's sums, the loss's derivative by the student's logits [C, V], and the student's hidden states."""
    counted = chunk["counted"][:, None]
    axis_index = 0 if plan.axis_name is None else jax.lax.axis_index(plan.axis_name)
    student_axis, *teacher_axes = plan.axes
    classes = head.shape[student_axis]
    shard = Shard(jnp.asarray(axis_index * classes, jnp.int32), plan.vocab_size, plan.axis_name)
    padded = plan.vocab_size < classes * axis_size(plan.axis_name)

    def logits(rows: Array, head: Array, axis: int) -> tuple[Array, Array]:
        rows = jnp.where(counted, rows, 0).astype(_multiplied_dtype(rows))
        product = _product(rows, head, 1, 1 - axis)
        return rows, shard.without_padding(product) if padded else product

    rows, student = logits(chunk["student"], head, student_axis)
    teachers = [
        logits(*teacher)[1] for teacher in zip(chunk.get("teachers", ()), constants["heads"], teacher_axes, strict=True)
    ]
    tile = {"student": student, "teachers": teachers, **{name: chunk[name] for name in _PER_TOKEN}}
    terms = partial(_tile_terms, plan, constants, shard)
    if plan.small_pieces and plan.axis_name is None:  # with one, every piece would be an exchange of its own
        terms = partial(_few_rows_at_a_time, terms)
    sums, to_logits = terms(tile)
    return sums, to_logits, rows


def _few_rows_at_a_time(terms: Callable[..., Any], tile: dict[str, Any]) -> tuple[dict[str, Array], Array]:
    """`terms` of a tile [C, V], some rows at a time: what lies between logits and gradient stays in a CPU's caches."""
    tokens, classes = tile["student"].shape
    most = max(1, _CACHED_BYTES // (4 * classes))
    size = next(size for size in range(min(most, tokens), 0, -1) if tokens % size == 0)
    blocks = jax.tree.map(lambda array: array.reshape(tokens // size, size, *array.shape[1:]), tile)

    def add(sums: dict[str, Array], block: dict[str, Any]) -> tuple[dict[str, Array], Array]:
        block_sums, to_logits = terms(block)
        return jax.tree.map(jnp.add, sums, block_sums), to_logits

    sums, to_logits = jax.lax.scan(add, varying_like(tile["student"], _no_sums()), blocks)
    return sums, to_logits.reshape(tokens, classes)


def _tile_terms(
    plan: _Plan, constants: dict[str, Any], shard: Shard, tile: dict[str, Any]
) -> tuple[dict[str, Array], Array]:
    """The sums of a tile of logits, and the loss's derivative by the student's."""
    student, counted, labelled = tile["student"], tile["counted"][:, None], tile["labelled"][:, None]
    sums, weights, to_logits = _no_sums(), constants["weights"], jnp.zeros((), jnp.float32)
    if tile["top_k"] is not None:
        values, gradient = top_k_terms(student, tile["top_k"], constants["temperature"], shard)
    elif "kd" in plan.terms:
        values, gradient = divergence_terms(
            student,
            tile["teachers"],
            constants["teacher_weights"] if plan.teacher_weights is None else plan.teacher_weights,
            constants["temperature"],
            shard,
            divergence=plan.divergence,
            beta=plan.beta,
        )
    if "kd" in plan.terms:
        sums["kd"] = jnp.sum(jnp.where(counted, values, 0.0))
        to_logits += jnp.where(counted, weights["kd"], 0.0) * gradient
    if "ce" in plan.terms or "z" in plan.terms:
        found = label_terms(student, tile["labels"], shard)
    if "ce" in plan.terms:
        sums["ce"] = jnp.sum(jnp.where(labelled, found.cross_entropy, 0.0))
        to_logits += jnp.where(labelled, weights["ce"], 0.0) * found.cross_entropy_gradient
    if "z" in plan.terms:
        sums["z"] = jnp.sum(jnp.where(counted, found.log_normalizer**2, 0.0))
        to_logits += jnp.where(counted, 2.0 * weights["z"] * found.log_normalizer, 0.0) * found.probabilities
    return sums, jnp.broadcast_to(to_logits, student.shape)


def _no_sums() -> dict[str, Array]:
    return {name: jnp.zeros((), jnp.float32) for name in ("kd", "ce", "z")}


def _totals(plan: _Plan, sums: dict[str, Array], constants: dict[str, Any]) -> tuple[Scalar, dict[str, Scalar]]:
    """Every shard has found the whole sums: one of them says so, and adding up over the axis gives all of them back."""
    weighted = jnp.zeros((), jnp.float32)
    for name, weight in constants["weights"].items():
        weighted += weight * sums[name]
    if plan.axis_name is None:
        return weighted, sums
    is_first = jax.lax.axis_index(plan.axis_name) == 0
    return jax.tree.map(lambda total: jnp.where(is_first, total, 0.0), (weighted, sums))


def _multiplied_dtype(rows: Array) -> Any:
    return jnp.bfloat16 if rows.dtype == jnp.bfloat16 else jnp.float32


def _divergence(divergence: Divergence, beta: float) -> tuple[Divergence, float]:
    """Checked; Jensen–Shannon's ends are the two Kullback–Leibler divergences."""
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence must be one of {', '.join(get_args(Divergence))}, got {divergence!r}")
    if not is_static(beta):
        raise ValueError(f"beta must be a plain number in [0, 1], got {beta!r}")
    check_fraction("beta", beta)
    if divergence == "jensen_shannon" and beta in (0.0, 1.0):
        divergence = "forward_kl" if beta == 0.0 else "reverse_kl"
    return divergence, float(beta)


def _as_weight(name: str, weight: float | Scalar) -> Scalar:
    """A term's weight as a float32 scalar; a plain number must be finite."""
    if is_static(weight):
        if not math.isfinite(weight):  # pyright: ignore[reportArgumentType]
            raise ValueError(f"{name} must be finite, got {weight}")
    elif not isinstance(weight, (jax.Array, np.ndarray)) or weight.shape != ():
        raise ValueError(f"{name} must be a number or a scalar array, got {weight!r}")
    return jnp.asarray(weight, jnp.float32)


def _chunk_size(chunk_size: int | None, tokens: int, classes: int) -> int:
    """How many tokens at a time, dividing them evenly if it is ours to choose."""
    if chunk_size is not None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, got {chunk_size!r}")
        return chunk_size
    return chunk_tokens(tokens, classes)


def chunk_tokens(tokens: int, classes: int) -> int:
    """How many tokens are taken at a time: an eighth of them, of few a quarter, and at most a tile of 256 MiB."""
    share = max(-(-tokens // _CHUNKS), min(_FEWEST_TOKENS, -(-tokens // 4)))
    largest = max(1, min(_TILE_BYTES // (4 * classes), share))
    power_of_two = 1 << (largest.bit_length() - 1)
    return max(1, -(-tokens // -(-tokens // power_of_two))) if tokens else 1
