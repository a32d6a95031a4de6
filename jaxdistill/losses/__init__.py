"""Distillation losses as pure array functions: unreduced, masked by `where=`, accurate where student and teacher agree.

`masked_sum_count` and `masked_mean` are the only reductions (`distillation_loss`, the textbook convenience, uses them).
"""

from jaxdistill.losses.distillation import distillation_loss, ensemble_forward_kl, mixture_logits
from jaxdistill.losses.divergences import (
    forward_kl,
    jensen_shannon,
    logit_mse,
    reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from jaxdistill.losses.reduce import masked_mean, masked_sum_count
from jaxdistill.losses.supervised import cross_entropy

__all__ = [
    "cross_entropy",
    "distillation_loss",
    "ensemble_forward_kl",
    "forward_kl",
    "jensen_shannon",
    "logit_mse",
    "masked_mean",
    "masked_sum_count",
    "mixture_logits",
    "reverse_kl",
    "soft_cross_entropy",
    "total_variation",
]
