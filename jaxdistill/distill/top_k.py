"""A language model's most probable tokens at every position: what a cache keeps of it instead of all its logits.

Kept are the K largest logits, as bfloat16 and less the largest of them (a constant of the position means nothing, and
bfloat16 is finest where it matters: near 0); their ids; and for each temperature the log-normaliser of all classes,
corrected by what rounding did to the kept ones: the share of the classes that are not kept is the teacher's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill import losses
from jaxdistill.distill.bit_packing import bits_of, pack_ids, packed_bytes, unpack_ids
from jaxdistill.distill.positions import learned
from jaxdistill.distill.teacher import Teacher
from jaxdistill.models.outputs import Outputs
from jaxdistill.parallel import replicated
from jaxdistill.typing import Array, Batch, Float, Params, Signals

_TILE_BYTES = 2**26
"""Of one float32 tile of logits."""

_LEAST_MASS = 1e-7

TOP_K = "top_k"
"""The signal's name, and where in a batch it lies."""


@dataclass(frozen=True)
class TopKForm:
    """What is kept of every position: `top_k` of `classes`, and a normaliser for each of `temperatures`."""

    top_k: int
    classes: int
    temperatures: tuple[float, ...]

    @property
    def bits(self) -> int:
        """Of an id."""
        return bits_of(self.classes)

    @property
    def token_bytes(self) -> int:
        """Bytes of a position."""
        return 2 * self.top_k + packed_bytes(self.top_k, self.bits) + 4 * len(self.temperatures)


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher whose top-k comes with the batch, in "top_k": packed ids, bfloat16 logits and log-normalisers.

    It has no parameters.
    """

    form: TopKForm

    def prepare(self, params: Params) -> Params:
        """As they are."""
        return params

    def signals(self, params: Params, batch: Batch, outputs: Outputs) -> Signals:
        """The batch's top-k, ids unpacked: ids int32 and logits float32 [B, S, K], log_normalizer float32 [B, S, T].

        Raises:
          ValueError: another signal is asked for.
        """
        if unknown := [name for name in outputs if name != TOP_K]:
            raise ValueError(
                f"a stored teacher holds its top {self.form.top_k} tokens only, but the loss reads "
                f"{', '.join(unknown)}; set teacher_cache: off"
            )
        if not outputs:
            return {}
        stored = batch[TOP_K]
        found = {
            "ids": unpack_ids(stored["ids"], bits=self.form.bits, count=self.form.top_k),
            "logits": stored["logits"].astype(jnp.float32),
            "log_normalizer": stored["log_normalizer"],
        }
        return {TOP_K: jax.lax.stop_gradient(found)}


@partial(jax.jit, static_argnames=("teacher", "form", "mesh"))
def top_k_of(
    params: Params, batch: Batch, *, teacher: Teacher, form: TopKForm, mesh: Mesh | None = None
) -> dict[str, Array]:
    """What is kept of a batch of sequences [B, S]; logits are made for a few tokens at a time.

    Args:
      params: the teacher's, prepared.
      batch: input_ids and the rest.
      teacher: gives the signal `head`.
      form: what is kept.
      mesh: that parameters and batch are spread over; the result is whole on every device.

    Returns:
      ids uint8 [B, S, bytes], logits bfloat16 [B, S, K], log_normalizer float32 [B, S, temperatures].
    """

    def keep(logits: Array, _: Array) -> dict[str, Array]:
        rounded, exact, ids = _largest(logits, form.top_k)
        normalizers = [
            _tempered(rounded, temperature) - _log_share(logits, exact, temperature)
            for temperature in form.temperatures
        ]
        return {
            "ids": pack_ids(ids, bits=form.bits),
            "logits": rounded,
            "log_normalizer": jnp.stack(normalizers, axis=-1),
        }

    return _over_tiles(keep, params, batch, teacher=teacher, form=form, mesh=mesh)


@partial(jax.jit, static_argnames=("teacher", "form", "mesh"))
def top_k_error(
    params: Params, batch: Batch, *, teacher: Teacher, form: TopKForm, mesh: Mesh | None = None
) -> dict[str, Float[Array, "B S T"]]:
    """How far what a batch holds of its teacher is from the whole distribution, in nats, wherever it is learned from.

    Args as for `top_k_of`; the batch holds "top_k" besides.

    Returns:
      float32 [B, S, temperatures] each, 0 elsewhere. rounding: KL(teacher ‖ stored) over the stored classes and all
      others as one, which is what training compares; kl: over all classes, the others' mass taken to be spread evenly;
      tail: that mass. Masses below 1e-7, which float32 cannot tell from a sum of 1, count as so much.
    """

    def measure(logits: Array, where: Array, stored: dict[str, Array]) -> dict[str, Array]:
        exact = jnp.take_along_axis(logits, stored["ids"], axis=-1)
        others = jnp.put_along_axis(logits, stored["ids"], -jnp.inf, axis=-1, inplace=False)
        beyond = max(form.classes - form.top_k, 1)
        found: dict[str, list[Array]] = {"rounding": [], "kl": [], "tail": []}
        for index, temperature in enumerate(form.temperatures):
            normalizer = jax.nn.logsumexp(logits / temperature, axis=-1, keepdims=True)
            theirs, tail = _log_masses(exact, normalizer, temperature)
            kept, _ = _log_masses(stored["logits"], stored["log_normalizer"][..., index : index + 1], temperature)
            rounding = losses.forward_kl(kept, theirs)
            log_p = others / temperature - normalizer
            p = jnp.exp(log_p)
            entropy = jnp.sum(jnp.where(p > 0.0, p * log_p, 0.0), axis=-1)
            uneven = jnp.maximum(entropy - tail * jnp.log(tail / beyond), 0.0)
            for name, value in (("rounding", rounding), ("kl", rounding + uneven), ("tail", tail)):
                found[name].append(jnp.where(where, value, 0.0))
        return {name: jnp.stack(values, axis=-1) for name, values in found.items()}

    stored = StoredTeacher(form).signals({}, batch, (TOP_K,))[TOP_K]
    return _over_tiles(measure, params, batch, stored, teacher=teacher, form=form, mesh=mesh)


def _log_masses(logits: Float[Array, "*B K"], normalizer: Float[Array, "*B 1"], temperature: float) -> Any:
    """Log-probabilities of K classes and of all others together, and the others' mass."""
    log_p = logits / temperature - normalizer
    tail = jnp.maximum(-jnp.expm1(jnp.minimum(jax.nn.logsumexp(log_p, axis=-1), 0.0)), _LEAST_MASS)
    return jnp.concatenate([log_p, jnp.log(tail)[..., None]], axis=-1), tail


def _over_tiles(
    function: Callable[..., dict[str, Array]],
    params: Params,
    batch: Batch,
    *stored: Any,
    teacher: Teacher,
    form: TopKForm,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """`function` of a few tokens of every row at a time: their logits, whether they count, and what is `stored`."""
    spread = mesh if mesh is not None and mesh.size > 1 else None
    with nullcontext() if spread is None else jax.sharding.use_abstract_mesh(spread.abstract_mesh):
        head = teacher.signals(params, batch, ("head",))["head"]
    kernel, hidden = head["kernel"].astype(head["input"].dtype), head["input"]
    rows, length = hidden.shape[:2]
    size = max(1, min(length, _TILE_BYTES // (4 * rows * kernel.shape[1])))
    parts = -(-length // size)

    def split(array: Array) -> Array:
        """[B, S, ...] as [parts, B, size, ...]."""
        padding = ((0, 0), (0, parts * size - length), *((0, 0),) * (array.ndim - 2))
        return jnp.pad(array, padding).reshape(rows, parts, size, *array.shape[2:]).swapaxes(0, 1)

    def tile(part: Sequence[Any]) -> dict[str, Array]:
        states, *others = part
        logits = jnp.dot(states, kernel, preferred_element_type=jnp.float32)
        return function(logits[..., : form.classes], *others)

    values = jax.lax.map(tile, jax.tree.map(split, (hidden, learned(batch), *stored)))
    whole = {
        name: value.swapaxes(0, 1).reshape(rows, parts * size, *value.shape[3:])[:, :length]
        for name, value in values.items()
    }
    return whole if spread is None else jax.lax.with_sharding_constraint(whole, replicated(spread))


def _largest(logits: Float[Array, "*B V"], count: int) -> tuple[Array, Array, Array]:
    """The largest logits less the largest, as bfloat16 and as they are, and their ids."""
    values, ids = jax.lax.top_k(logits, count)
    exact = values - values[..., :1]
    return exact.astype(jnp.bfloat16), exact, ids


def _tempered(logits: Float[Array, "*B K"], temperature: float) -> Float[Array, "*B"]:
    return jax.nn.logsumexp(logits.astype(jnp.float32) / temperature, axis=-1)


def _log_share(logits: Float[Array, "*B V"], kept: Float[Array, "*B K"], temperature: float) -> Float[Array, "*B"]:
    """Log of the mass of the kept classes (given less the largest logit); at most 0."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.minimum(_tempered(kept, temperature) - _tempered(logits - top, temperature), 0.0)
