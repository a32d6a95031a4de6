"""Training: state, optimizer, the compiled step, evaluation."""

from jaxdistill.train.evaluate import evaluate_logits, make_eval_step
from jaxdistill.train.optimizer import build_optimizer
from jaxdistill.train.state import TrainState, init_state
from jaxdistill.train.step import TrainStep, make_train_step

__all__ = [
    "TrainState",
    "TrainStep",
    "build_optimizer",
    "evaluate_logits",
    "init_state",
    "make_eval_step",
    "make_train_step",
]
