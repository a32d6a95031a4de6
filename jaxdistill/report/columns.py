"""Which numbers of a run are shown, by what its models do, and how each is titled and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the sample standard deviation (None for a single value)."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Column:
    """How one number of a row is titled, explained and written."""

    key: str
    title: str
    write: Callable[[float], str]
    meaning: str = ""

    def text(self, estimates: Mapping[str, Estimate] | None) -> str:
        """`mean` or `mean ± deviation`; an empty string where nothing was measured."""
        estimate = (estimates or {}).get(self.key)
        if estimate is None:
            return ""
        mean = self.write(estimate.mean)
        deviation = None if estimate.deviation is None else self.write(estimate.deviation)
        return mean if deviation in (None, "0") else f"{mean} ± {deviation}"  # "0": counts that do not vary


@dataclass(frozen=True)
class Measures:
    """What is shown of a run's models. quality: how good they are, the headline first; closeness: to their teachers."""

    quality: tuple[Column, ...]
    closeness: tuple[Column, ...]
    training: tuple[Column, ...]

    @property
    def headline(self) -> Column:
        """The one number of a model where there is room for one."""
        return self.quality[0]

    @property
    def evaluated(self) -> tuple[Column, ...]:
        """All that an evaluation measures."""
        return self.quality + self.closeness


def decimals(value: float) -> str:
    """Four decimals, or two digits of what they would show as almost nothing."""
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.1e}"


def perplexity(value: float) -> str:
    """Two decimals, none where they mean nothing, and powers of ten of a model that knows nothing."""
    if value >= 1000:
        return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
    return f"{value:.2f}"


_STEPS = Column("steps", "steps", "{:,.0f}".format, "optimizer updates")
_SECONDS = Column("seconds", "seconds", "{:,.0f}".format, "training time, evaluation and compilation included")
_KL = Column("kl", "KL", decimals, "mean KL(teacher ‖ student) at temperature 1, in nats")

CLASSIFIERS = Measures(
    quality=(
        Column("accuracy", "accuracy", "{:.4f}".format, "share of examples with the right label"),
        Column("f1", "F1", "{:.4f}".format, "F1 (binary: of label 1; otherwise macro)"),
        Column("retention", "retention", "{:.1%}".format, "accuracy divided by the first teacher's"),
    ),
    closeness=(
        Column(
            "agreement", "agreement", "{:.4f}".format, "share of examples given the same label as by its own teacher"
        ),
        _KL,
    ),
    training=(_STEPS, Column("examples_per_second", "examples/s", "{:,.0f}".format, "training throughput"), _SECONDS),
)
TOKEN_CLASSIFIERS = Measures(
    quality=(
        Column("f1", "F1", "{:.4f}".format, "F1 of whole entities, all types together"),
        Column("precision", "precision", "{:.4f}".format, "share of the entities found that are right"),
        Column("recall", "recall", "{:.4f}".format, "share of the entities there that are found"),
        Column("accuracy", "accuracy", "{:.4f}".format, "share of words with the right tag"),
        Column("retention", "retention", "{:.1%}".format, "F1 divided by the first teacher's"),
    ),
    closeness=(
        Column("agreement", "agreement", "{:.4f}".format, "share of words tagged as by its own teacher"),
        _KL,
    ),
    training=CLASSIFIERS.training,
)
QUESTION_ANSWERERS = Measures(
    quality=(
        Column("f1", "F1", "{:.4f}".format, "F1 of the words of an answer, averaged over questions"),
        Column("exact_match", "exact match", "{:.4f}".format, "share of questions answered word by word as expected"),
        Column("retention", "retention", "{:.1%}".format, "F1 divided by the first teacher's"),
    ),
    closeness=(
        Column("agreement", "agreement", "{:.4f}".format, "share of questions answered as by its own teacher"),
        _KL,
    ),
    training=CLASSIFIERS.training,
)
LANGUAGE_MODELS = Measures(
    quality=(
        Column("perplexity", "perplexity", perplexity, "exp of the mean cross-entropy of a token"),
        Column("accuracy", "accuracy", "{:.4f}".format, "share of tokens that were the most likely one"),
        Column("retention", "retention", "{:.1%}".format, "the first teacher's perplexity divided by the model's"),
    ),
    closeness=(
        Column(
            "agreement",
            "agreement",
            "{:.4f}".format,
            "share of tokens for which the most likely one is also its own teacher's",
        ),
        _KL,
    ),
    training=(_STEPS, Column("tokens_per_second", "tokens/s", "{:,.0f}".format, "training throughput"), _SECONDS),
)
MASKED_MODELS = Measures(
    quality=(
        Column("accuracy", "masked accuracy", "{:.4f}".format, "share of masked tokens that were the most likely one"),
        Column("pseudo_perplexity", "pseudo-perplexity", perplexity, "exp of the mean cross-entropy of a masked token"),
        Column("retention", "retention", "{:.1%}".format, "masked accuracy divided by the first teacher's"),
    ),
    closeness=(
        Column(
            "agreement",
            "agreement",
            "{:.4f}".format,
            "share of masked tokens for which the most likely one is also its own teacher's",
        ),
        _KL,
    ),
    training=LANGUAGE_MODELS.training,
)


_TOLD_BY = {
    "perplexity": LANGUAGE_MODELS,
    "pseudo_perplexity": MASKED_MODELS,
    "exact_match": QUESTION_ANSWERERS,
    "precision": TOKEN_CLASSIFIERS,
}
"""A metric that no other task has."""


def measures_of(keys: Set[str]) -> Measures:
    """What to show of models of which an evaluation gave these metrics."""
    for key, measures in _TOLD_BY.items():
        if key in keys:
            return measures
    return CLASSIFIERS
