"""What terms need of both models, told with both sizes before anything is loaded."""

from __future__ import annotations

import re

import pytest

from jaxdistill import models
from jaxdistill.config import build_chain, run_from_dict
from jaxdistill.distill.term_checks import check_terms
from jaxdistill.errors import ConfigError

BERT = {
    "architecture": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def check(loss, student=None, teacher=None, *, tokenizer=0, max_length=32):
    """`check_terms` of a stage with this loss; student and teacher: fields other than the tiny BERT's."""
    made = run_from_dict(
        {
            "name": "tiny",
            "data": {"train": {"asset": "sentiment", "split": "train"}},
            "tokenizer": "owner/tokenizer",
            "stages": [
                {"name": "a", "student": BERT, "train": {"epochs": 1}, "teacher": None},
                {"name": "b", "student": BERT, "train": {"epochs": 1}, "loss": loss},
            ],
        }
    )
    both = [
        models.config_from_hf(
            {"model_type": "bert", **{k: v for k, v in BERT.items() if k != "architecture"}, **fields}
        )
        for fields in (student or {}, teacher or {})
    ]
    stage = build_chain(made).stage("b")
    check_terms(stage, both[0], both[1:], tokenizer_indices=(tokenizer,), max_length=max_length)


WIDE = {"hidden_size": 12, "num_attention_heads": 3}
MISTRAL = {"model_type": "mistral", "sliding_window": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "message"),
    [
        (
            [{"type": "cross_entropy"}, {"type": "hidden_state_mse"}],
            {},
            WIDE,
            "stages.b.loss.1: hidden_state_mse with teacher a: needs one hidden_size for both, but the student's is 8 "
            "and the teacher's 12; give the student hidden_size: 12, or learn a projection between the two "
            "(projection: per_pair, or shared)",
        ),
        ({"preset": "pkd"}, {}, WIDE, "stages.b.loss: patient with teacher a: needs one hidden_size"),
        (
            {"preset": "minilm"},
            {},
            WIDE,
            "attention_kl with teacher a: needs one num_attention_heads for both, but the student's is 2 and the "
            "teacher's 3; give the student num_attention_heads: 3, or use relation_kl, which compares any numbers",
        ),
        (
            {"preset": "minilm_v2"},
            {},
            WIDE,
            "3 relation heads do not divide the width of the vectors, the student's 8; write relation_heads as one of "
            "1, 2, 4",
        ),
        (
            [{"type": "hidden_state_mse", "layers": [[3, 1]]}],
            {},
            {},
            "the student has 2 layers, and 3 is none of them; expected 0 to 2",
        ),
        (
            [{"type": "cosine"}],
            {"num_hidden_layers": 2},
            {"hidden_size": 16},
            "cosine with teacher a: needs one hidden",
        ),
        (
            [{"type": "attention_kl"}],
            MISTRAL,
            MISTRAL,
            "the student's layers see 4 tokens at a time, and sequences have 32; map layers without a sliding window",
        ),
    ],
)
def test_misfits(loss, student, teacher, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(loss, student, teacher)


def test_what_compares_any_sizes_and_what_never_counts():
    check([{"type": "similarity_preserving"}, {"type": "relation_kl", "relation_heads": 4}], {}, WIDE)
    check([{"type": "hidden_state_mse", "weight": 0}, {"type": "cross_entropy"}], {}, WIDE)
    check([{"type": "attention_kl"}], MISTRAL, MISTRAL, max_length=4)


def test_token_by_token_needs_the_same_tokens():
    with pytest.raises(ConfigError, match="compares token by token, but the teacher has another tokenizer"):
        check([{"type": "cosine"}], tokenizer=1)
    check([{"type": "patient"}, {"type": "contrastive", "pooling": "first"}], tokenizer=1)
