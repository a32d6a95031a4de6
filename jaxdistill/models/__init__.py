"""Encoders and decoders as pure functions over plain parameter trees, translated from and to Hugging Face's files."""

from __future__ import annotations

from jaxdistill.models.build import Model, build, init_placed, parameter_bytes, parameter_count, parameter_shapes
from jaxdistill.models.classes import class_order, reorder_classes
from jaxdistill.models.config import EncoderConfig, ModelConfig, config_from_hf, positions, task_from_hf
from jaxdistill.models.convert.load import LoadReport, from_pretrained, missing_head
from jaxdistill.models.convert.save import save_pretrained
from jaxdistill.models.derive import decoder_parameters, derive_config, resolve_derived, student_config
from jaxdistill.models.hub import resolve
from jaxdistill.models.importance import Importance, decoder_importance
from jaxdistill.models.llama_config import LlamaConfig, RopeConfig
from jaxdistill.models.outputs import OUTPUTS
from jaxdistill.models.quantised import Quantisation, describe_quantisation, quantise, require_qwix
from jaxdistill.models.stack import stack_layers, unstack_layers
from jaxdistill.models.surgery import DecoderSlice, select_layers, slice_decoder, svd_factorise

__all__ = [
    "OUTPUTS",
    "DecoderSlice",
    "EncoderConfig",
    "Importance",
    "LlamaConfig",
    "LoadReport",
    "Model",
    "ModelConfig",
    "Quantisation",
    "RopeConfig",
    "build",
    "class_order",
    "config_from_hf",
    "decoder_importance",
    "decoder_parameters",
    "derive_config",
    "describe_quantisation",
    "from_pretrained",
    "init_placed",
    "missing_head",
    "parameter_bytes",
    "parameter_count",
    "parameter_shapes",
    "positions",
    "quantise",
    "reorder_classes",
    "require_qwix",
    "resolve",
    "resolve_derived",
    "save_pretrained",
    "select_layers",
    "slice_decoder",
    "stack_layers",
    "student_config",
    "svd_factorise",
    "task_from_hf",
    "unstack_layers",
]
