"""Shapes of the decoders we build: our frozen configuration, and its translation from and to Hugging Face's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jaxdistill.errors import ModelError
from jaxdistill.models.checks import Checks

LLAMA_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "dynamic", "llama3")

_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {**_QWEN, "attention_bias": True},
    "qwen3": {**_QWEN, "head_dim": 128},
}
# Which of the numbers in Hugging Face's rope dictionary each type reads.
_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding under Hugging Face's names; numbers its type does not read keep their defaults."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama-family decoder, under Hugging Face's names whatever the architecture.

    attention_bias is that of queries, keys and values (and of the output projection, except in Qwen2);
    sliding_window the number of tokens a query sees, itself included, in layers from max_window_layers on (None: all).
    """

    model_type: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 0
    rope: RopeConfig = field(default_factory=RopeConfig)
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def output_bias(self) -> bool:
        """Whether attention's output projection has a bias."""
        return self.attention_bias and self.model_type != "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised before they are rotated."""
        return self.model_type == "qwen3"

    def window(self, layer: int) -> int | None:
        """The layer's sliding window; None: it sees the whole document."""
        return self.sliding_window if layer >= self.max_window_layers else None

    @property
    def positions(self) -> int:
        """Longest sequence the model has positions for: linear and dynamic RoPE stretch the original's by a factor."""
        stretch = self.rope.factor if self.rope.rope_type in ("linear", "dynamic") else 1.0
        return int(self.max_position_embeddings * stretch)


def llama_from_hf(raw: Mapping[str, Any], where: str) -> LlamaConfig:
    """Our configuration from Hugging Face's dictionary; `where` names it in errors.

    attention_dropout is not read: decoders are trained without dropout.

    Raises:
        ModelError: invalid fields (all of them listed).
    """
    model_type = raw["model_type"]
    read = {f.name for f in fields(LlamaConfig)} - {"rope", "sliding_window", "max_window_layers"}
    given = {name: value for name, value in raw.items() if name in read and value is not None}
    values: dict[str, Any] = {f.name: f.default for f in fields(LlamaConfig) if f.name in read}
    values |= _DEFAULTS[model_type] | given
    if "num_key_value_heads" not in _DEFAULTS[model_type] | given or raw.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    values |= {name: raw[name] for name in ("bos_token_id", "eos_token_id") if name in raw}  # null means none
    if isinstance(values["eos_token_id"], list):
        values["eos_token_id"] = tuple(values["eos_token_id"])
    checks = Checks(values)
    good = _check_sizes(checks)
    _check_options(checks)
    if good:
        if "head_dim" not in _DEFAULTS[model_type] | given:
            _default_head(values, checks)
        _read_window(raw, values, checks)
    values["rope"] = _read_rope(raw, values["max_position_embeddings"], checks)
    if checks.problems:
        raise ModelError(f"{where} ({model_type}): " + "; ".join(checks.problems))
    for name in ("initializer_range", "rms_norm_eps"):  # equal configurations hash equal however they were written
        values[name] = float(values[name])
    return LlamaConfig(**values)


def llama_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Hugging Face's `config.json`; RoPE in both spellings, the newer one first to count."""
    skip = {"model_type", "rope", "attention_bias", "mlp_bias", "sliding_window", "max_window_layers"}
    body = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in skip}
    if config.model_type in ("llama", "qwen3"):
        body["attention_bias"] = config.attention_bias
    if config.model_type == "llama":
        body["mlp_bias"] = config.mlp_bias
    else:
        body["sliding_window"] = config.sliding_window
    if config.model_type in ("qwen2", "qwen3"):
        sliding = config.sliding_window is not None
        body["use_sliding_window"] = sliding
        body["max_window_layers"] = config.max_window_layers if sliding else config.num_hidden_layers
    rope = config.rope
    scaling = {"rope_type": rope.rope_type} | {name: getattr(rope, name) for name in _ROPE_NUMBERS[rope.rope_type]}
    return {
        "architectures": [f"{_CLASSES[config.model_type]}ForCausalLM"],
        "model_type": config.model_type,
        **body,
        "rope_parameters": {"rope_theta": rope.rope_theta, **scaling},
        "rope_theta": rope.rope_theta,
        "rope_scaling": None if rope.rope_type == "default" else scaling,
        "dtype": "float32",
    }


def _check_sizes(checks: Checks) -> bool:
    """Whether every size is a whole number, and the heads share keys and values evenly."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    good = [checks.whole(name, 1) for name in (*sizes, "num_attention_heads", "num_key_value_heads", "head_dim")]
    values = checks.values
    if all(good) and values["num_attention_heads"] % values["num_key_value_heads"]:
        checks.problems.append(
            f"num_attention_heads={values['num_attention_heads']} is not divisible by "
            f"num_key_value_heads={values['num_key_value_heads']}"
        )
    if all(good) and values["head_dim"] % 2:
        checks.problems.append(f"head_dim={values['head_dim']} is odd, but RoPE rotates pairs of channels")
    return all(good)


def _default_head(values: dict[str, Any], checks: Checks) -> None:
    """head_dim where it was left out."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    values["head_dim"] = width // heads
    if width % heads:
        checks.problems.append(f"hidden_size={width} is not divisible by num_attention_heads={heads}; or give head_dim")
    elif values["head_dim"] % 2:
        checks.problems.append(f"head_dim={values['head_dim']} is odd, but RoPE rotates pairs of channels")


def _check_options(checks: Checks) -> None:
    """Everything but the sizes."""
    values = checks.values
    for name in ("initializer_range", "rms_norm_eps"):
        checks.positive(name)
    checks.expect("hidden_act", values["hidden_act"] in _ACTIVATIONS, "one of " + ", ".join(_ACTIVATIONS))
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        checks.expect(name, isinstance(values[name], bool), "true or false")
    model_type = values["model_type"]
    if model_type == "mistral" and values["attention_bias"] is True:
        checks.problems.append("attention_bias=True is not for mistral, which has none")
    if model_type == "qwen2" and values["attention_bias"] is False:
        checks.problems.append("attention_bias=False is not for qwen2, whose queries, keys and values have biases")
    if model_type != "llama" and values["mlp_bias"] is True:
        checks.problems.append(f"mlp_bias=True is not for {model_type}, which has none")
    for name in ("pad_token_id", "bos_token_id"):
        if values[name] is not None:
            checks.expect(name, isinstance(values[name], int), "a token id")


def _read_window(raw: Mapping[str, Any], values: dict[str, Any], checks: Checks) -> None:
    """sliding_window and max_window_layers; Llama has none, Mistral one in every layer, Qwen from a layer on."""
    model_type, count = values["model_type"], values["num_hidden_layers"]
    used = model_type == "mistral" or (model_type != "llama" and bool(raw.get("use_sliding_window")))
    window = raw.get("sliding_window", 4096) if used else None
    first = raw.get("max_window_layers", 28) if model_type in ("qwen2", "qwen3") else 0
    problems = len(checks.problems)
    values |= {"sliding_window": window, "max_window_layers": first}
    if window is not None:
        checks.whole("sliding_window", 1)
        checks.whole("max_window_layers", 0)
    if raw.get("layer_types") is not None and model_type in ("qwen2", "qwen3"):
        kinds = [str(kind) for kind in raw["layer_types"]]
        full, sliding = kinds.count("full_attention"), kinds.count("sliding_attention")
        values["max_window_layers"] = first = full
        if kinds != ["full_attention"] * full + ["sliding_attention"] * sliding or len(kinds) != count:
            checks.problems.append(
                f"layer_types={kinds!r} (expected full_attention, then sliding_attention, {count} layers in all)"
            )
        elif sliding and window is None:
            checks.problems.append(
                "layer_types has sliding_attention, but use_sliding_window and sliding_window do not"
            )
    if len(checks.problems) == problems and (window is None or first >= count):
        values |= {"sliding_window": None, "max_window_layers": 0}


def _read_rope(raw: Mapping[str, Any], positions: Any, checks: Checks) -> RopeConfig:
    """RoPE from `rope_parameters`, or from `rope_theta` and `rope_scaling` as transformers before 5 wrote it."""
    newer, older = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if not isinstance(newer, Mapping) or not isinstance(older, Mapping):
        checks.problems.append("rope_parameters and rope_scaling must be mappings")
        return RopeConfig()
    both = {
        name: (newer[name], value)
        for name, value in {**older, "rope_theta": raw.get("rope_theta")}.items()
        if value is not None and name in newer and newer[name] != value
    }
    checks.problems += [f"rope_parameters.{name}={new!r} contradicts {old!r}" for name, (new, old) in both.items()]
    given = {"rope_theta": raw.get("rope_theta"), **older, **newer}
    rope_type = given.get("rope_type") or given.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        checks.problems.append(f"rope_type={rope_type!r} (expected one of {', '.join(ROPE_TYPES)})")
        return RopeConfig()
    if (given.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1) != 1:
        checks.problems.append("partial_rotary_factor is not 1; only RoPE over the whole head is supported")
    if rope_type == "llama3":  # as transformers fills it in
        given.setdefault("original_max_position_embeddings", positions)
    numbers: dict[str, Any] = {name: given.get(name) for name in _ROPE_NUMBERS[rope_type]}
    numbers["rope_theta"] = RopeConfig.rope_theta if given["rope_theta"] is None else given["rope_theta"]
    rope = Checks({f"rope.{name}": value for name, value in numbers.items()})
    good = [rope.positive(name) for name in rope.values]
    if all(good) and rope_type == "llama3" and not numbers["low_freq_factor"] < numbers["high_freq_factor"]:
        rope.problems.append(
            f"low_freq_factor={numbers['low_freq_factor']} is not below high_freq_factor={numbers['high_freq_factor']}"
        )
    checks.problems += rope.problems
    if rope.problems:
        return RopeConfig()
    exact: dict[str, Any] = {
        name: int(value) if name.startswith("original") else float(value) for name, value in numbers.items()
    }
    return RopeConfig(rope_type=rope_type, **exact)
