"""Which student layer learns from which teacher layer, against maps written out by hand."""

from __future__ import annotations

import pytest

from jaxdistill.config.loss_schema import AttentionKLTerm, CosineTerm, DivergenceTerm, EmbeddingTerm, HiddenStateTerm
from jaxdistill.distill.layer_maps import describe_layers, resolve_layers, term_pairs
from jaxdistill.errors import ConfigError


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 3, 6, [(1, 2), (2, 4), (3, 6)]),
        ("uniform", 4, 4, [(1, 1), (2, 2), (3, 3), (4, 4)]),
        ("uniform", 2, 5, [(1, 3), (2, 5)]),  # 2.5, a tie, goes up
        ("uniform", 3, 5, [(1, 2), (2, 3), (3, 5)]),  # 1.67, 3.33
        ("uniform", 5, 12, [(1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]),  # 2.4, 4.8, 7.2, 9.6
        # the two maps of the article, for a student of 6 layers and a teacher of 12
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("last", 6, 12, [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        ("last", 3, 3, [(1, 1), (2, 2)]),
        (((-1, -2), (0, 0), (2, 6), (-3, -6)), 3, 6, [(3, 5), (0, 0), (2, 6), (1, 1)]),
    ],
)
def test_maps(layers, student, teacher, expected):
    assert list(resolve_layers(layers, student, teacher)) == expected


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "lowest", "message"),
    [
        ("uniform", 7, 6, 0, "the student has 7 layers and the teacher 6; write pairs"),
        ("skip", 1, 6, 0, r"skip leaves out the last layer, and the student has one; write \[\[-1, -1\]\]"),
        ("last", 1, 6, 0, "last leaves out the last layer"),
        (((4, 1),), 3, 6, 0, "the student has 3 layers, and 4 is none of them; expected 0 to 3"),
        (((1, -7),), 3, 6, 0, "the teacher has 6 layers, and -7 is none of them"),
        (((0, 1),), 3, 6, 1, "0 is none of them; expected 1 to 3"),
    ],
)
def test_layers_that_are_not_there(layers, student, teacher, lowest, message):
    with pytest.raises(ConfigError, match=message):
        resolve_layers(layers, student, teacher, lowest=lowest)


def test_terms_have_layers_of_their_own():
    assert term_pairs(EmbeddingTerm("embedding_mse"), 3, 6) == ((0, 0),)
    assert term_pairs(CosineTerm("cosine"), 3, 6) == ((3, 6),)
    assert term_pairs(AttentionKLTerm("attention_kl"), 3, 6) == ((3, 6),)
    with pytest.raises(ConfigError, match="has no attention"):
        term_pairs(AttentionKLTerm("attention_kl", layers=((0, 0),)), 3, 6)


def test_resolved_maps_are_written_out_for_every_teacher():
    terms = (DivergenceTerm("forward_kl"), HiddenStateTerm("hidden_state_mse"), CosineTerm("cosine"))
    assert describe_layers(terms, (2, 4)) == ["hidden_state_mse: 1←2, 2←4", "cosine: 2←4"]
    assert describe_layers(terms[1:2], (2, 4, 2)) == [
        "hidden_state_mse (teacher 1): 1←2, 2←4",
        "hidden_state_mse (teacher 2): 1←1, 2←2",
    ]
    assert describe_layers(terms, (2,)) == []
