"""Entities and their scores against sentences worked out by hand after conlleval."""

from __future__ import annotations

import pytest

from jaxdistill.data.tags import Entity, entities, entity_scores, tag_set

E = Entity


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O O", []),
        ("B-PER I-PER O B-LOC", [E("PER", 0, 2), E("LOC", 3, 4)]),
        ("B-PER B-PER", [E("PER", 0, 1), E("PER", 1, 2)]),
        ("B-PER I-LOC", [E("PER", 0, 1), E("LOC", 1, 2)]),  # another type begins an entity without a B
        ("O I-PER I-PER", [E("PER", 1, 3)]),  # and so does an I after O, as IOB1 writes it
        ("I-PER B-PER I-PER", [E("PER", 0, 1), E("PER", 1, 3)]),
        ("S-PER S-PER O", [E("PER", 0, 1), E("PER", 1, 2)]),  # IOBES
        ("B-ORG I-ORG E-ORG E-ORG", [E("ORG", 0, 3), E("ORG", 3, 4)]),
        ("B-ORG E-ORG I-ORG", [E("ORG", 0, 2), E("ORG", 2, 3)]),
        ("U-LOC B-ORG M-ORG L-ORG", [E("LOC", 0, 1), E("ORG", 1, 4)]),  # BILOU and BMES
        ("PER PER O LOC", [E("PER", 0, 2), E("LOC", 3, 4)]),  # types alone
        ("B-MISC-x I-MISC-x", [E("MISC-x", 0, 2)]),
        ("", []),
    ],
)
def test_entities(tags: str, expected: list[Entity]) -> None:
    assert entities(tags.split()) == expected


def test_scores_are_of_whole_entities() -> None:
    """Of 4 entities 2 are found whole; a type that is wrong and an end that is wrong count twice."""
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "I-ORG", "O", "B-PER"]]
    guess = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "O", "O", "B-PER"]]
    scores = entity_scores(truth, guess)
    assert scores == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    scores = entity_scores(truth, [truth[0], ["O"] * 4])
    assert scores == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}


def test_nothing_to_find_and_nothing_found_is_zero() -> None:
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert entity_scores([["B-PER"]], [["O"]])["f1"] == 0.0


def test_entities_of_different_sentences_are_different() -> None:
    scores = entity_scores([["B-PER"], ["O"]], [["O"], ["B-PER"]])
    assert scores["f1"] == 0.0


def test_a_set_of_tags_is_ordered_and_completed() -> None:
    assert tag_set(["I-PER", "O", "B-PER", "B-LOC"]) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert tag_set(["S-LOC", "B-PER", "O", "E-PER"]) == (*("O", "B-LOC", "E-LOC", "S-LOC", "B-PER", "E-PER", "S-PER"),)
    assert tag_set(["NOUN", "VERB", "O"]) == ("O", "NOUN", "VERB")
