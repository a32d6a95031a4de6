"""From start and end logits to answers' texts, and SQuAD's measures of them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxdistill.data.windows import SpanDataset
from jaxdistill.typing import Float

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is chosen.

    n_best: starts and ends that are paired in each window. max_answer_length: most tokens of an answer. null_threshold:
    by how much "no answer" must outscore the best answer (sums of two logits) to be given; None: it never is.
    """

    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float | None = None


@dataclass(frozen=True)
class FoundAnswer:
    """A question's answer: characters start to end of its context, or nothing ("", with start and end 0).

    score: its probability among the n best answers of all windows ("no answer" among them where it may be given).
    """

    text: str
    start: int
    end: int
    score: float


def best_answers(logits: Float[np.ndarray, "W 2 S"], dataset: SpanDataset, config: AnswerConfig) -> list[FoundAnswer]:
    """The best answer to each question, over all its windows.

    An answer's score is the sum of its start's and its end's logit; that of "no answer" is the sum of token 0's, in the
    window where it is least (as in BERT's own and `transformers`' evaluation of SQuAD).

    Args:
      logits: starts above ends, −inf where there can be none; windows shorter than S have −inf there.
      dataset: the W windows.
      config: what is paired and chosen.

    Returns:
      as many as there are questions, in their order.
    """
    spans: list[list[tuple[float, int, int]]] = [[] for _ in dataset.rows.questions]
    nothing = np.full(len(spans), np.inf)
    offsets = dataset.tokens.encodings[0].offsets
    for window, question in enumerate(dataset.question):
        pair = logits[window].astype(np.float64)
        nothing[question] = min(nothing[question], float(pair[0, 0] + pair[1, 0]))
        first = int(offsets[window])
        spans[question] += [
            (score, int(dataset.starts[first + start]), int(dataset.ends[first + end]))
            for score, start, end in _spans(pair, config)
        ]
    contexts = dataset.rows.contexts
    return [_chosen(found, nothing[i], contexts[i], config) for i, found in enumerate(spans)]


def _spans(pair: np.ndarray, config: AnswerConfig) -> list[tuple[float, int, int]]:
    """The n best (score, start, end) of one window; token 0 is none of the context."""
    inner = pair[:, 1:]
    count = min(config.n_best, inner.shape[1])
    starts, ends = (np.argsort(-scores, kind="stable")[:count] + 1 for scores in inner)
    together = pair[0, starts][:, None] + pair[1, ends][None]
    lengths = ends[None] - starts[:, None] + 1
    together[(lengths < 1) | (lengths > config.max_answer_length)] = -np.inf
    order = np.argsort(-together, axis=None, kind="stable")[: config.n_best]
    rows, columns = np.unravel_index(order, together.shape)
    return [
        (float(together[row, column]), int(starts[row]), int(ends[column]))
        for row, column in zip(rows, columns, strict=True)
        if np.isfinite(together[row, column])
    ]


def _chosen(spans: list[tuple[float, int, int]], nothing: float, context: str, config: AnswerConfig) -> FoundAnswer:
    best = sorted(spans, key=lambda span: -span[0])[: config.n_best]
    scores = [score for score, _, _ in best]
    if config.null_threshold is not None or not best:
        scores.append(nothing)
    shifted = np.exp(np.asarray(scores) - max(scores))
    probabilities = shifted / shifted.sum()
    if not best or (config.null_threshold is not None and nothing - best[0][0] > config.null_threshold):
        return FoundAnswer("", 0, 0, float(probabilities[-1]))
    _, start, end = best[0]
    return FoundAnswer(context[start:end], start, end, float(probabilities[0]))


# --- measures --------------------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles (a, an, the) and more than single spaces, as SQuAD's script compares.

    (Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, https://arxiv.org/abs/1606.05250)
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(guess: str, truth: str) -> float:
    """1 if both are the same once normalised."""
    return float(normalised(guess) == normalised(truth))


def token_f1(guess: str, truth: str) -> float:
    """F1 of the words that both have once normalised; of a text without words, 1 if the other has none either."""
    ours, theirs = normalised(guess).split(), normalised(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def squad_scores(guesses: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of answers, each against the best of those accepted, averaged over questions; in [0, 1].

    Args:
      guesses: one a question, "" for none.
      truths: the answers accepted for each; none for a question that has no answer.

    Returns:
      {"exact_match", "f1"}.
    """
    matches, overlaps = [], []
    for guess, accepted in zip(guesses, truths, strict=True):
        given = [truth for truth in accepted if normalised(truth)] or [""]
        matches.append(max(exact_match(guess, truth) for truth in given))
        overlaps.append(max(token_f1(guess, truth) for truth in given))
    return {"exact_match": float(np.mean(matches)), "f1": float(np.mean(overlaps))}
