"""Terms of a language model computed together from last hidden states: no array of tokens × vocabulary exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxdistill import losses
from jaxdistill.distill.positions import learned
from jaxdistill.distill.schedules import number
from jaxdistill.distill.signals import Wanted
from jaxdistill.distill.terms import CrossEntropy, LogitDivergence, Term, ZLoss
from jaxdistill.distill.top_k_terms import TopKDivergence
from jaxdistill.parallel import BATCH_AXES, target_device
from jaxdistill.typing import Array, Batch, Scalar, Signals

FUSABLE = ("forward_kl", "reverse_kl", "jensen_shannon")
"""Divergences that `losses.fused_linear_distillation` knows."""

_WIDTH_AXIS, _VOCABULARY_AXIS = "fsdp", "tensor"
_HEAD: Wanted = (("head", None),)
_DIVERGENCES = (LogitDivergence, TopKDivergence)


def unfusable(terms: Sequence[Term]) -> str | None:
    """Why these terms cannot be computed together from hidden states; None if they can."""
    for kind, what in ((_DIVERGENCES, "divergence"), (CrossEntropy, "cross-entropy"), (ZLoss, "z-loss")):
        if sum(isinstance(term, kind) for term in terms) > 1:
            return f"the loss has more than one {what}"
    for term in terms:
        match term:
            case LogitDivergence() if term.divergence not in FUSABLE:
                return f"{term.name} is none of {', '.join(FUSABLE)}"
            case LogitDivergence() if term.teacher_choice == "confidence" and len(term.teacher_weights) > 1:
                return "the most confident teacher is known from whole logits only"
            case CrossEntropy() if term.label_smoothing:
                return "cross_entropy has label smoothing"
            case LogitDivergence() | TopKDivergence() | CrossEntropy() | ZLoss():
                continue
            case _:
                return f"{term.name} is none of {', '.join(FUSABLE)}, cross_entropy, z_loss"
    return None


@dataclass(frozen=True)
class FusedTerms:
    """At most one divergence, cross-entropy and z-loss each, as one pass over chunks of tokens.

    Weights and the temperature may be traced: they are the terms' own after `at_step`.
    vocab_size: columns of the heads beyond it are padding (None: none is).
    """

    terms: tuple[Term, ...]
    vocab_size: int | None = None

    @property
    def student_outputs(self) -> Wanted:
        """The input and kernel of the student's head."""
        return _HEAD

    @property
    def teacher_outputs(self) -> tuple[Wanted, ...]:
        """Those of every teacher's, if there is a divergence; of a stored one, what is stored."""
        match self._find(_DIVERGENCES):
            case None:
                return ()
            case TopKDivergence() as stored:
                return stored.teacher_outputs
            case divergence:
                return (_HEAD,) * len(divergence.teacher_weights)

    def __call__(
        self,
        student: Signals,
        teachers: Sequence[Signals],
        batch: Batch,
        *,
        counts: Mapping[str, Scalar],
        mesh: Mesh | None = None,
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """The weighted loss, and every term's unweighted sum without gradient.

        Args:
          student, teachers: signals with `head`: input [B, S, D], kernel [D, V].
          batch: labels [B, S].
          counts: of each term over the whole batch, by which its sum is divided.
          mesh: devices the batch (and the vocabulary, over `tensor`) is spread over; None: everything is here.

        Returns:
          (loss float32 [], {term's name: sum float32 []}).
        """
        divergence = self._find(_DIVERGENCES)
        stored = isinstance(divergence, TopKDivergence)
        arrays = {
            "student": _head(student),
            "teachers": [_head(signals) for signals in teachers] if divergence and not stored else [],
            "top_k": divergence.stored(teachers[0]) if stored else None,
            "labels": batch["labels"],
            "where": learned(batch),
            "weights": {term.name: number(term.weight) / _at_least_one(counts[term.name]) for term in self.terms},
            "temperature": jnp.float32(1.0 if divergence is None else number(divergence.temperature)),
        }
        if mesh is None or mesh.size == 1:
            return self._sums(arrays, axis_name=None)
        return self._sharded(arrays, mesh)

    def _sharded(self, arrays: dict[str, Any], mesh: Mesh) -> tuple[Scalar, dict[str, Scalar]]:
        """Each device takes its own tokens and, if they can be divided, its own part of the vocabulary."""
        classes = [_classes(head) for head in (arrays["student"], *arrays["teachers"])]
        devices = mesh.shape[_VOCABULARY_AXIS]
        divided = devices > 1 and len(set(classes)) == 1 and classes[0] % devices == 0
        axis = _VOCABULARY_AXIS if divided else None
        rows = PartitionSpec(BATCH_AXES)
        width = arrays["student"]["input"].shape[-1]
        shared = _WIDTH_AXIS if mesh.shape[_WIDTH_AXIS] > 1 and width % mesh.shape[_WIDTH_AXIS] == 0 else None

        def of(head: dict[str, Array], shared: str | None) -> dict[str, PartitionSpec]:
            parts = {"input": rows, "kernel": PartitionSpec(shared, axis), "table": PartitionSpec(axis, shared)}
            return {name: parts[name] for name in head}

        specs = {
            "student": of(arrays["student"], shared),
            "teachers": [of(head, None) for head in arrays["teachers"]],
            "top_k": jax.tree.map(lambda _: rows, arrays["top_k"]),
            "labels": rows,
            "where": rows,
            "weights": jax.tree.map(lambda _: PartitionSpec(), arrays["weights"]),
            "temperature": PartitionSpec(),
        }

        def local(arrays: dict[str, Any]) -> Any:
            arrays = {**arrays, "student": _gathered(arrays["student"], shared)}
            return jax.lax.psum(self._sums(arrays, axis_name=axis), BATCH_AXES)

        return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec())(arrays)

    def _sums(self, arrays: dict[str, Any], *, axis_name: str | None) -> tuple[Scalar, dict[str, Scalar]]:
        kinds = {"kd": _DIVERGENCES, "ce": CrossEntropy, "z": ZLoss}
        names = {short: term.name for short, kind in kinds.items() if (term := self._find(kind))}
        weights = {f"{short}_weight": arrays["weights"][names[short]] if short in names else 0.0 for short in kinds}
        divergence = self._find(_DIVERGENCES)
        options: dict[str, Any] = {}
        if isinstance(divergence, LogitDivergence):
            options = {"divergence": divergence.divergence, "teacher_weights": divergence.teacher_weights}
            if divergence.beta is not None:
                options["beta"] = divergence.beta
        loss, sums = losses.fused_linear_distillation(
            *_flat(arrays["student"]),
            [_flat(head)[0] for head in arrays["teachers"]] or None,
            [_flat(head)[1] for head in arrays["teachers"]] or None,
            arrays["labels"].reshape(-1),
            **weights,
            temperature=arrays["temperature"],
            vocab_size=self.vocab_size,
            where=arrays["where"].reshape(-1),
            top_k=_flat_top_k(arrays["top_k"]),
            axis_name=axis_name,
            platform=target_device().platform,
            **options,
        )
        return loss, {name: sums[short] for short, name in names.items()}

    def _find(self, kind: Any) -> Any:
        return next((term for term in self.terms if isinstance(term, kind)), None)


def _at_least_one(count: Scalar) -> Scalar:
    return jnp.maximum(count, 1).astype(jnp.float32)


def _head(signals: Signals) -> dict[str, Array]:
    """A head without bias: the bias becomes one more row of the kernel, and a channel of ones; a table stays one."""
    head: dict[str, Array] = dict(signals["head"])
    bias, name = head.pop("bias", None), "table" if "table" in head else "kernel"
    if bias is None:
        return {key: head[key] for key in ("input", name)}
    ones = jnp.ones((*head["input"].shape[:-1], 1), head["input"].dtype)
    width = 1 if name == "table" else 0
    bias = jnp.expand_dims(bias.astype(head[name].dtype), width)
    return {
        "input": jnp.concatenate([head["input"], ones], axis=-1),
        name: jnp.concatenate([head[name], bias], axis=width),
    }


def _gathered(head: dict[str, Array], axis_name: str | None) -> dict[str, Array]:
    """A head whose width may be spread over devices, whole, in the dtype that is multiplied.

    Gathered here, its gradient is scattered again as it is summed, in that dtype, as every other weight's is: the
    compiler would sum the whole of it in float32 on every device, four times as much.
    """
    name = "table" if "table" in head else "kernel"
    array = head[name].astype(head["input"].dtype) if head["input"].dtype == jnp.bfloat16 else head[name]
    if axis_name is not None:
        array = jax.lax.all_gather(array, axis_name, axis=int(name == "table"), tiled=True)
    return {**head, name: array}


def _classes(head: dict[str, Array]) -> int:
    return head["table"].shape[0] if "table" in head else head["kernel"].shape[1]


def _flat(head: dict[str, Array]) -> tuple[Array, Array | losses.Table]:
    """[B, S, D] as [B·S, D], and the kernel or table."""
    weights = losses.Table(head["table"]) if "table" in head else head["kernel"]
    return head["input"].reshape(-1, head["input"].shape[-1]), weights


def _flat_top_k(stored: losses.TopK | None) -> losses.TopK | None:
    """[B, S, …] as [B·S, …]."""
    return None if stored is None else losses.TopK(*(array.reshape(-1, *array.shape[2:]) for array in stored))
