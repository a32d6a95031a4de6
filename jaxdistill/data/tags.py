"""Tags of words: what they say of entities, how a set of them is ordered, and how entities are compared.

A tag is `O`, or a place in an entity and its type: `B-PER` begins one, `I-PER` is inside, `E-` ends and `S-` is one
alone (IOBES; BILOU's L and U and BMES's M are the same). A tag without a place (`PER`, a part of speech) is inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"

_PLACED = re.compile(r"([BIESLUM])-(.+)")
_PLACES = {"L": "E", "U": "S", "M": "I"}
_ORDER = "BIMELSU"


class Entity(NamedTuple):
    """Words start to end (exclusive) of a sentence, and what they are."""

    kind: str
    start: int
    end: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, as CoNLL's own scorer (conlleval) and seqeval's default mode find them.

    An `I-` after another type's tag, or after `O`, begins an entity, as does every `B-` and `S-`.
    """
    found: list[Entity] = []
    before, kind_before, start = OUTSIDE, "", 0
    for index, tag in enumerate([*tags, OUTSIDE]):
        place, kind = _parsed(tag)
        if _ends(before, kind_before, place, kind):
            found.append(Entity(kind_before, start, index))
        if _begins(before, kind_before, place, kind):
            start = index
        before, kind_before = place, kind
    return found


def _parsed(tag: str) -> tuple[str, str]:
    """Place and type."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _PLACED.fullmatch(tag)
    return (_PLACES.get(match[1], match[1]), match[2]) if match else ("I", tag)


def _ends(before: str, kind_before: str, place: str, kind: str) -> bool:
    """Whether an entity ends between two words."""
    if before == OUTSIDE:
        return False
    return before in "ES" or place in ("B", "S", OUTSIDE) or kind_before != kind


def _begins(before: str, kind_before: str, place: str, kind: str) -> bool:
    """Whether an entity begins between two words."""
    if place == OUTSIDE:
        return False
    return place in "BS" or before in ("E", "S", OUTSIDE) or kind_before != kind


def entity_scores(truth: Iterable[Sequence[str]], guess: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, over all sentences and types together (micro average).

    An entity is right if its first word, its last word and its type are. 0 where nothing was there to divide by.
    (Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 Shared Task, https://aclanthology.org/W03-0419)

    Args:
      truth: the tags of every sentence.
      guess: those predicted, as many.

    Returns:
      {"precision", "recall", "f1"}.
    """
    right = expected = predicted = 0
    for theirs, ours in zip(truth, guess, strict=True):
        wanted, found = set(entities(theirs)), set(entities(ours))
        right, expected, predicted = right + len(wanted & found), expected + len(wanted), predicted + len(found)
    precision = right / predicted if predicted else 0.0
    recall = right / expected if expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def tag_set(found: Iterable[str]) -> tuple[str, ...]:
    """The tags that the data uses, `O` first and the others by type, and those they imply.

    Every type gets the places that any type has: an `I-LOC` that only the test set has is not a mistake where `B-LOC`
    and `I-PER` occur.
    """
    tags = set(found)
    placed = [match for match in map(_PLACED.fullmatch, tags) if match]
    places, kinds = {match[1] for match in placed}, {match[2] for match in placed}
    tags |= {f"{place}-{kind}" for place in places for kind in kinds}

    def key(tag: str) -> tuple[bool, str, int]:
        match = _PLACED.fullmatch(tag)
        return tag != OUTSIDE, match[2] if match else tag, _ORDER.index(match[1]) if match else -1

    return tuple(sorted(tags, key=key))
