"""Shapes of the models we build: our frozen configurations, and their translation from and to Hugging Face's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from jaxdistill.errors import ModelError
from jaxdistill.models.checks import Checks, is_number
from jaxdistill.models.llama_config import LLAMA_ARCHITECTURES, LlamaConfig, llama_from_hf, llama_to_hf

ARCHITECTURES = ("bert", "bert_hash", "distilbert", "roberta")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

_DISTILBERT_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "seq_classif_dropout": "classifier_dropout",
}
_DISTILBERT_FIXED = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
_CLASSES = {"bert": "Bert", "bert_hash": "BertHash", "distilbert": "DistilBert", "roberta": "Roberta"}
_SUFFIXES = {
    "classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "masked_lm": "ForMaskedLM",
    "causal_lm": "ForCausalLM",
}
"""How Hugging Face's classes for a task are called."""
_ORIGINAL_BERT = {
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert_hash": {"projections": 5},
    "distilbert": {"num_hidden_layers": 6, "classifier_dropout": 0.2, **_DISTILBERT_FIXED},
    "roberta": {
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    },
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a BERT-family encoder, under Hugging Face's BERT names whatever the architecture.

    projections is the width P of BertHash's factorised word table (0 elsewhere); id2label the label names in the
    order of their integers, or None when the checkpoint has only generic ones; num_labels their number.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    projections: int = 0
    tie_word_embeddings: bool = True
    num_labels: int = 2
    id2label: tuple[str, ...] | None = None

    @property
    def head_size(self) -> int:
        """Width H of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def head_act(self) -> str:
        """Activation of the masked-LM head: RoBERTa's is GELU whatever its encoder's is."""
        return "gelu" if self.model_type == "roberta" else self.hidden_act

    def with_labels(self, num_labels: int, id2label: tuple[str, ...] | None = None) -> EncoderConfig:
        """The same shape with `num_labels` classes; names of another number of classes are dropped."""
        names = self.id2label if id2label is None else tuple(id2label)
        return replace(self, num_labels=num_labels, id2label=names if names and len(names) == num_labels else None)


ModelConfig: TypeAlias = EncoderConfig | LlamaConfig


def positions(config: ModelConfig) -> int:
    """Longest sequence the model has positions for (RoBERTa's table starts after its padding index)."""
    if isinstance(config, LlamaConfig):
        return config.positions
    if config.model_type == "roberta":
        return config.max_position_embeddings - config.pad_token_id - 1
    return config.max_position_embeddings


def config_from_hf(source: Mapping[str, Any] | str | Path) -> Any:
    """Our configuration from Hugging Face's: a dictionary, a `config.json` or the directory that holds one.

    It is an `EncoderConfig` or a `LlamaConfig`, as model_type says.
    Fields may carry the architecture's own names (DistilBERT's `dim`, `n_layers`, …) or BERT's; fields left out get
    Hugging Face's defaults, and fields that do not shape the network are ignored.

    Raises:
        ModelError: no such file, not JSON, an architecture we do not build, or invalid fields (all of them listed).
    """
    raw, where = (dict(source), "model configuration") if isinstance(source, Mapping) else _read_json(Path(source))
    model_type = raw.get("model_type") or _unstated_model_type(raw)
    if model_type in LLAMA_ARCHITECTURES:
        return llama_from_hf({**raw, "model_type": model_type}, where)
    if model_type not in ARCHITECTURES:
        supported = ", ".join((*ARCHITECTURES, *LLAMA_ARCHITECTURES))
        raise ModelError(
            f"{where}: model_type is {model_type!r}; supported architectures are {supported}. "
            "Choose a model of one of these"
        )
    values = _DEFAULTS[model_type] | {"model_type": model_type}
    aliases = _DISTILBERT_NAMES if model_type == "distilbert" else {}
    known = {field.name for field in fields(EncoderConfig)} - {"id2label", "num_labels"}
    problems: list[str] = []
    for name, value in raw.items():
        ours = aliases.get(name, name)
        if ours in known and value is not None:
            if name in aliases and raw.get(ours) not in (None, value):
                problems.append(f"{name}={value!r} contradicts {ours}={raw[ours]!r}")
            values[ours] = value
    if model_type == "distilbert":
        values |= _DISTILBERT_FIXED
    values["num_labels"], values["id2label"] = _labels(raw, problems)
    problems += _unsupported(raw)
    problems += _invalid(values)
    if problems:
        raise ModelError(f"{where} ({model_type}): " + "; ".join(problems))
    return EncoderConfig(**{name: _exact(name, value) for name, value in values.items()})


def task_from_hf(source: str | Path) -> str | None:
    """What the model of a directory (or `config.json`) was trained for, by the class it was saved with.

    One of the tasks that `build` knows, or None: a model without a head, or with one that we do not build.

    Raises:
        ModelError: no such file, or not JSON.
    """
    raw, _ = _read_json(Path(source))
    saved = str(next(iter(raw.get("architectures") or ()), ""))
    return next((task for task, suffix in _SUFFIXES.items() if saved.endswith(suffix)), None)


def config_to_hf(config: ModelConfig, *, task: str, factorised: bool = False) -> dict[str, Any]:
    """Hugging Face's `config.json` for the model we save; BertHash becomes `bert` unless `factorised`."""
    if isinstance(config, LlamaConfig):
        return llama_to_hf(config)
    model_type = "bert" if config.model_type == "bert_hash" and not factorised else config.model_type
    skip = {"id2label", "num_labels", "model_type", "projections"}
    body = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in skip}
    if model_type == "bert_hash":
        body["projections"] = config.projections
    if model_type == "distilbert":
        body = {name: value for name, value in body.items() if name not in _DISTILBERT_FIXED}
        theirs = {ours: name for name, ours in _DISTILBERT_NAMES.items()}
        body = {theirs.get(name, name): value for name, value in body.items()}
        if body["seq_classif_dropout"] is None:  # DistilBERT's own field may not be null
            body["seq_classif_dropout"] = config.hidden_dropout_prob
        body["qa_dropout"] = config.hidden_dropout_prob
    names = config.id2label or tuple(f"LABEL_{i}" for i in range(config.num_labels))
    return {
        "architectures": [_CLASSES[model_type] + _SUFFIXES[task]],
        "model_type": model_type,
        **body,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "dtype": "float32",
    }


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The dictionary in `path` (or in its config.json) and the name to call it by."""
    path = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a model directory holds config.json and model.safetensors") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw, str(path)


def _unstated_model_type(raw: Mapping[str, Any]) -> str | None:
    """What an old `config.json` without model_type is: by its class, else BERT if it has all fields of Google's own."""
    classes = raw.get("architectures")
    if not classes:
        return "bert" if raw.keys() >= _ORIGINAL_BERT else None
    stem = str(classes[0]).split("For")[0].removesuffix("Model")
    return next((model_type for model_type, prefix in _CLASSES.items() if prefix == stem), None)


def _labels(raw: Mapping[str, Any], problems: list[str]) -> tuple[int, tuple[str, ...] | None]:
    """Number of labels and their names; generic names (LABEL_0, …) are no names."""
    table = raw.get("id2label")
    if table is None:
        count = raw.get("num_labels")
        return (2 if count is None else count), None
    try:
        items = enumerate(table) if isinstance(table, (list, tuple)) else ((int(k), v) for k, v in table.items())
        by_index = {index: str(name) for index, name in items}
    except (AttributeError, TypeError, ValueError):
        by_index = {}
    if not by_index or sorted(by_index) != list(range(len(by_index))):
        problems.append(f"id2label={table!r} must map 0, 1, 2, … to names")
        return 2, None
    names = tuple(by_index[index] for index in range(len(by_index)))
    if len(set(names)) != len(names):
        problems.append(f"id2label={names!r} names a label twice")
    if raw.get("num_labels") not in (None, len(names)):
        problems.append(f"num_labels={raw['num_labels']!r} contradicts id2label, which has {len(names)}")
    generic = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return len(names), None if generic else names


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """Options of Hugging Face's that change the mathematics and that we do not implement."""
    problems = []
    if raw.get("position_embedding_type") not in (None, "absolute"):
        problems.append(f"position_embedding_type={raw['position_embedding_type']!r} (only 'absolute' is supported)")
    problems += [
        f"{name}=true (only encoders are supported)" for name in ("is_decoder", "add_cross_attention") if raw.get(name)
    ]
    return problems


def _invalid(values: Mapping[str, Any]) -> list[str]:
    """One line for every field whose value cannot be built."""
    config = {field.name: values.get(field.name, field.default) for field in fields(EncoderConfig)}
    checks = Checks(config)
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    good = {name: checks.whole(name, 1) for name in (*sizes, "max_position_embeddings", "num_labels")}
    bert_hash = config["model_type"] == "bert_hash"
    good |= {name: checks.whole(name, 0) for name in ("type_vocab_size", "pad_token_id")}
    good["projections"] = checks.whole("projections", 1 if bert_hash else 0)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        value = config[name]
        optional = name == "classifier_dropout" and value is None
        checks.expect(name, optional or (is_number(value) and 0 <= value < 1), "a number in [0, 1)")
    for name in ("layer_norm_eps", "initializer_range"):
        checks.positive(name)
    checks.expect("hidden_act", config["hidden_act"] in ACTIVATIONS, "one of " + ", ".join(ACTIVATIONS))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if good["hidden_size"] and good["num_attention_heads"] and width % heads:
        checks.problems.append(f"hidden_size={width} is not divisible by num_attention_heads={heads}")
    if not bert_hash and good["projections"] and config["projections"]:
        checks.problems.append(f"projections={config['projections']} is only for bert_hash")
    roberta = config["model_type"] == "roberta" and good["max_position_embeddings"] and good["pad_token_id"]
    if roberta and config["max_position_embeddings"] <= config["pad_token_id"] + 1:
        checks.problems.append(
            f"max_position_embeddings={config['max_position_embeddings']} leaves RoBERTa no position"
        )
    return checks.problems


def _exact(name: str, value: Any) -> Any:
    """Floats as floats, so that equal configurations compare and hash equal however they were written."""
    return (
        float(value)
        if name.endswith(("_prob", "_eps", "_range", "classifier_dropout")) and value is not None
        else value
    )
