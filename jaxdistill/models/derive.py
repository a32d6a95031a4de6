"""A student's shape: from what its configuration says, from its teacher, or from a number of parameters.

Sizes that follow from a number of parameters keep as much of the teacher's depth as they can and give up width instead:
at equal size, deeper and thinner language models below a few billion parameters were the better ones (MobileLLM,
arXiv:2402.14905, section 2.2). The size of a head, the number of query heads that share a key head, and the ratios of
heads and feed-forward to width stay the teacher's, so that the student can start as a slice of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxdistill.config.families import student_fields
from jaxdistill.config.model_schema import StudentConfig
from jaxdistill.config.numbers import readable
from jaxdistill.errors import ConfigError
from jaxdistill.models.config import ModelConfig, config_from_hf
from jaxdistill.models.llama_config import LLAMA_ARCHITECTURES, LlamaConfig, llama_to_hf

TOLERANCE = 0.03
"""Of the shapes this near to the number of parameters asked for, the deepest is taken."""

_ROPE = ("rope_parameters", "rope_theta", "rope_scaling")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers")
_FROM_TEACHER = {"vocab_size", "max_position_embeddings", "tie_word_embeddings", *_ROPE, *_TOKENS}
_FROM_ARCHITECTURE = {"hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias"}


def student_config(
    student: StudentConfig, *, vocab_size: int | None = None, teacher: ModelConfig | None = None
) -> ModelConfig:
    """The configuration of a fresh student, encoder or decoder, its sizes written out or derived.

    Args:
        student: with `architecture` or `derive`.
        vocab_size: of a student that does not say; default, a decoder's teacher's, else Hugging Face's.
        teacher: the first teacher, if it reads the student's tokens. A decoder has positions, RoPE, tied or untied
            embeddings and special tokens from it, and of a teacher of its architecture also the activation, the norms'
            epsilon, biases and window, except where it says otherwise itself.

    Raises:
        ModelError: fields that cannot be built (all of them listed).
        ConfigError: a derived student without a decoder to derive it from, or that cannot be so large or so small.
    """
    if student.derive is not None:
        return resolve_derived(student, teacher)
    fields = student_fields(student)
    defaults: dict[str, Any] = {}
    if isinstance(teacher, LlamaConfig) and fields["model_type"] in LLAMA_ARCHITECTURES:
        defaults = _inherited(fields, teacher)
    if vocab_size is not None:
        defaults["vocab_size"] = vocab_size
    return config_from_hf(defaults | fields)


def _inherited(fields: dict[str, Any], teacher: LlamaConfig) -> dict[str, Any]:
    """What a decoder has from its teacher unless it says otherwise, under Hugging Face's names."""
    names = set(_FROM_TEACHER)
    if not fields.keys().isdisjoint(_ROPE):  # several spellings of one thing: the student's own, whole
        names -= set(_ROPE)
    if fields["model_type"] == teacher.model_type:
        names |= _FROM_ARCHITECTURE
        names |= set() if "sliding_window" in fields else set(_WINDOW)
    layers = fields.get("num_hidden_layers", LlamaConfig.num_hidden_layers)
    scaled = dataclasses.replace(teacher, max_window_layers=_scaled_window(teacher, layers))
    return {name: value for name, value in llama_to_hf(scaled).items() if name in names}


def _scaled_window(teacher: LlamaConfig, layers: int) -> int:
    """The layer from which there is a window, in a model of so many layers."""
    return round(teacher.max_window_layers * layers / teacher.num_hidden_layers)


def resolve_derived(student: StudentConfig, teacher: ModelConfig | None) -> LlamaConfig:
    """The shape of a derived student, once its first teacher's is known.

    A rung of a ladder goes the first of `rungs` equal steps (of the logarithm) from the teacher's size down to the
    last rung's; since the next rung starts from this one's, the whole ladder is geometric.

    Raises:
        ConfigError: no teacher, a teacher that is not a decoder or is of another architecture than asked for, or
            a size that `derive_config` cannot give.
    """
    derive = student.derive
    assert derive is not None
    if not isinstance(teacher, LlamaConfig):
        got = "no teacher that reads the same tokens" if teacher is None else f"a {teacher.model_type} as teacher"
        raise ConfigError(f"derive: {got}; expected a decoder ({', '.join(LLAMA_ARCHITECTURES)}), or write the sizes")
    if student.architecture not in (None, teacher.model_type):
        raise ConfigError(
            f"architecture: {student.architecture}, but derive keeps the teacher's, which is {teacher.model_type}; "
            "remove architecture, or write the sizes instead of derive"
        )
    _check_smaller(teacher, derive.parameters)
    whole = decoder_parameters(teacher)
    target = whole * (derive.parameters / whole) ** (1 / derive.rungs)
    return derive_config(teacher, parameters=target, key_heads_multiple_of=derive.key_heads_multiple_of)


def derive_config(
    teacher: LlamaConfig, *, parameters: float, multiple_of: int = 64, key_heads_multiple_of: int = 1
) -> LlamaConfig:
    """A decoder of about `parameters` parameters, embeddings included, in the image of a larger one.

    Widths and feed-forward are multiples of `multiple_of` (of a half, a quarter, … of it if the teacher has fewer than
    eight of them), depths at most the teacher's; heads come in whole groups that share a key head, as many as the
    teacher has for the width, to the nearest multiple of `key_heads_multiple_of` groups. Of the shapes within
    `TOLERANCE` of `parameters` it is the deepest, and of those as deep the nearest; without one, the nearest of all.

    Raises:
        ConfigError: more parameters than the teacher has, fewer than the smallest such shape, or a teacher whose own
            key heads are no multiple of `key_heads_multiple_of`.
    """
    _check_smaller(teacher, parameters)
    if teacher.num_key_value_heads % key_heads_multiple_of:
        raise ConfigError(
            f"derive.key_heads_multiple_of: the teacher's {teacher.num_key_value_heads} key heads are no multiple of "
            f"{key_heads_multiple_of}; expected a divisor of them"
        )
    shapes = [
        (shape, layers, count)
        for shape in _shapes(teacher, multiple_of=multiple_of, together=key_heads_multiple_of)
        for layers, count in _counts(shape, teacher.num_hidden_layers)
    ]
    smallest, _, fewest = min(shapes, key=lambda candidate: candidate[2])
    if parameters < fewest * (1 - TOLERANCE):
        table = smallest.vocab_size * smallest.hidden_size * (1 if smallest.tie_word_embeddings else 2)
        raise ConfigError(
            f"derive.parameters: {readable(parameters)} is too few for a vocabulary of {smallest.vocab_size} tokens: "
            f"the smallest shape, 1 layer {smallest.hidden_size} wide, has {readable(fewest)}, {readable(table)} of "
            f"them embeddings; expected {readable(fewest)} to {readable(decoder_parameters(teacher))}"
        )

    def order(candidate: tuple[LlamaConfig, int, int]) -> tuple[int, float]:
        _, layers, count = candidate
        off = abs(count / parameters - 1)
        return (-layers if off <= TOLERANCE else 0, off)

    shape, layers, _ = min(shapes, key=order)
    return dataclasses.replace(shape, num_hidden_layers=layers, max_window_layers=_scaled_window(teacher, layers))


def _check_smaller(teacher: LlamaConfig, parameters: float) -> None:
    whole = decoder_parameters(teacher)
    if parameters > whole:
        raise ConfigError(
            f"derive.parameters: {readable(parameters)} is more than the teacher's {readable(whole)}; a derived "
            "student is smaller than its teacher, or write the sizes of a larger one"
        )


def _shapes(teacher: LlamaConfig, *, multiple_of: int, together: int) -> Iterator[LlamaConfig]:
    """Every width with the heads and feed-forward that go with it."""
    width, inner = teacher.hidden_size, teacher.intermediate_size
    while multiple_of > 1 and width < 8 * multiple_of:
        multiple_of //= 2
    shared = teacher.num_attention_heads // teacher.num_key_value_heads
    for narrower in sorted({*range(multiple_of, width, multiple_of), width}):
        groups = together * max(1, round(teacher.num_key_value_heads * narrower / width / together))
        fed = multiple_of * max(1, round(inner * narrower / width / multiple_of))
        yield dataclasses.replace(
            teacher,
            hidden_size=narrower,
            num_attention_heads=groups * shared,
            num_key_value_heads=groups,
            intermediate_size=inner if narrower == width else min(fed, inner),
        )


def _counts(shape: LlamaConfig, deepest: int) -> Iterator[tuple[int, int]]:
    """(layers, parameters) in every depth."""
    one, two = (decoder_parameters(dataclasses.replace(shape, num_hidden_layers=layers)) for layers in (1, 2))
    return ((layers, one + (layers - 1) * (two - one)) for layers in range(1, deepest + 1))


def decoder_parameters(config: LlamaConfig) -> int:
    """How many parameters a decoder of this shape has: exactly those that `init` draws."""
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = 2 * width * (queries + keys)
    if config.attention_bias:
        attention += queries + 2 * keys + (width if config.output_bias else 0)
    if config.qk_norm:
        attention += 2 * config.head_dim
    feed_forward = 3 * width * inner + (2 * inner + width if config.mlp_bias else 0)
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return tables + config.num_hidden_layers * (attention + feed_forward + 2 * width) + width
