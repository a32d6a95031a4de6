"""Distillation losses as pure array functions: unreduced, masked by `where=`, accurate where student and teacher agree.

`masked_sum_count` and `masked_mean` are the only reductions (`distillation_loss`, the textbook convenience, uses them).
"""

from jaxdistill.losses.attention import attention_kl, attention_mse, relation_kl
from jaxdistill.losses.correlation import dist
from jaxdistill.losses.decoupled import dkd
from jaxdistill.losses.distillation import (
    distillation_loss,
    ensemble_forward_kl,
    mixture_logits,
    most_confident_logits,
)
from jaxdistill.losses.divergences import (
    forward_kl,
    jensen_shannon,
    logit_mse,
    reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from jaxdistill.losses.features import (
    contrastive,
    cosine_distance,
    embedding_mse,
    hidden_state_mse,
    patient_loss,
    similarity_preserving,
)
from jaxdistill.losses.fused import fused_linear_distillation
from jaxdistill.losses.heads import Table
from jaxdistill.losses.interpolated import skewed_kl, taid
from jaxdistill.losses.reduce import masked_mean, masked_sum_count
from jaxdistill.losses.supervised import cross_entropy, z_loss
from jaxdistill.losses.topk import TopK, top_k_forward_kl

__all__ = [
    "Table",
    "TopK",
    "attention_kl",
    "attention_mse",
    "contrastive",
    "cosine_distance",
    "cross_entropy",
    "dist",
    "distillation_loss",
    "dkd",
    "embedding_mse",
    "ensemble_forward_kl",
    "forward_kl",
    "fused_linear_distillation",
    "hidden_state_mse",
    "jensen_shannon",
    "logit_mse",
    "masked_mean",
    "masked_sum_count",
    "mixture_logits",
    "most_confident_logits",
    "patient_loss",
    "relation_kl",
    "reverse_kl",
    "similarity_preserving",
    "skewed_kl",
    "soft_cross_entropy",
    "taid",
    "top_k_forward_kl",
    "total_variation",
    "z_loss",
]
