"""What a search tries next, asked of optuna: a pure function of what came of the trials before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdistill.config.schema import RangeConfig
from jaxdistill.errors import ConfigError

Trial = tuple[dict[str, float], float | None]
"""Numbers by their keys, and the metric that came of them; None: none that is finite."""


def require_optuna() -> Any:
    """The `optuna` module.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "sweep.trials: a search needs the optuna package, which is not installed; "
            "`pip install 'jaxdistill[search]'`, or list numbers without trials"
        ) from error
    return optuna


def propose(
    space: Mapping[str, RangeConfig | tuple[float, ...]],
    told: Sequence[Trial],
    *,
    count: int,
    maximize: bool,
    seed: int,
) -> list[dict[str, float]]:
    """Points to try at the same time, by a tree-structured Parzen estimator; at random while too little is known.

    The same arguments give the same points, so that a search need keep no state but its trials.

    Args:
      space: by key, a range, or the values to choose among.
      told: every trial before.
      count: of points.
      maximize: whether the larger metric is the better one.
      seed: of this round: another one's points would be drawn alike.

    Raises:
      ConfigError: as `require_optuna`.

    Reference:
      Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; the points of a round keep away from
      one another by optuna's `constant_liar`.
    """
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {
        key: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
        if isinstance(values, RangeConfig)
        else optuna.distributions.CategoricalDistribution(values)
        for key, values in space.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar is called one
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, count), constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="maximize" if maximize else "minimize")
    states = optuna.trial.TrialState
    for numbers, value in told:
        finite = value is not None and math.isfinite(value)
        # a pruned trial without a value counts as worse than any
        study.add_trial(
            optuna.trial.create_trial(
                params=numbers,
                distributions=distributions,
                value=value if finite else None,
                state=states.COMPLETE if finite else states.PRUNED,
            )
        )
    return [study.ask(distributions).params for _ in range(count)]
