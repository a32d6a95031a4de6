"""A student's start from its teacher: which layers, which tables, and what cannot be copied."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxdistill import models
from jaxdistill.config.model_schema import WarmStartConfig
from jaxdistill.distill.layer_choice import layer_indices
from jaxdistill.distill.warm_start import warm_start
from jaxdistill.errors import ModelError

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}


def make(model_type="bert", seed=0, num_labels=2, **shape):
    """A model and parameters random in every leaf, biases and norms included: what was copied shows."""
    model = models.build({"model_type": model_type, **SHAPE, **shape}, num_labels=num_labels)
    rng = np.random.default_rng(seed)
    shapes = models.parameter_shapes(model)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def signal(model, params, name):
    return jax.jit(lambda params: model.apply(params, BATCH, (name,))[name])(params)


TEACHER, TEACHER_PARAMS = make()
IDS = np.random.default_rng(0).integers(0, 40, (3, 8)).astype(np.int32)
BATCH = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": np.zeros_like(IDS)}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, (2, 5, 8, 11)),
        ("uniform", 2, 6, (2, 5)),
        ("uniform", 4, 6, (1, 2, 4, 5)),  # 1.5 and 4.5 are ties: up
        ("uniform", 6, 6, (0, 1, 2, 3, 4, 5)),
        ("uniform", 5, 6, (0, 1, 3, 4, 5)),  # 1.2 2.4 3.6 4.8 6
        ("first", 2, 6, (0, 1)),
        ("last", 2, 6, (4, 5)),
        ((0, 2, 4, 7, 9, 11), 6, 12, (0, 2, 4, 7, 9, 11)),
    ],
)
def test_layer_maps(layers, student, teacher, expected):
    assert layer_indices(layers, student=student, teacher=teacher) == expected


def test_layers_and_embeddings_of_equal_shape_make_an_equal_model():
    student, params = make(seed=1)
    started, lines = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig("uniform", "copy"))
    same(started, TEACHER_PARAMS)
    assert lines == [
        "layers 0 … 5 from teacher layers 0, 1, 2, 3, 4, 5 (uniform)",
        "classifier and pooler copied",
        "embeddings copied",
    ]


def test_the_chosen_layers_are_copied_and_the_rest_stays():
    student, params = make(seed=1, num_hidden_layers=2)
    started, _ = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig(layers=(1, 4)))
    layers = TEACHER_PARAMS["encoder"]["layers"]
    same(started["encoder"]["layers"], jax.tree.map(lambda x: x[np.array([1, 4])], layers))
    same(started["embeddings"], params["embeddings"])


def test_a_classifier_of_other_labels_is_not_copied():
    student, params = make(seed=1, num_labels=5)
    started, lines = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig(layers="uniform"))
    same(started["classifier"], params["classifier"])
    assert lines[1] == "pooler copied"


def test_a_classifier_is_copied_by_the_names_of_its_classes():
    named = {"num_labels": 3, "id2label": {0: "Neutral", 1: "Good", 2: "Bad"}}
    teacher, teacher_params = make(seed=2, **named)
    student, params = make(seed=1, num_labels=3, id2label={0: "good", 1: "bad", 2: "neutral"})
    started, _ = warm_start(student, params, teacher, teacher_params, WarmStartConfig("uniform", "copy"))
    mine, theirs = signal(student, started, "logits"), signal(teacher, teacher_params, "logits")
    np.testing.assert_allclose(mine, theirs[:, np.array([1, 2, 0])], rtol=1e-5, atol=1e-5)
    other, params = make(seed=1, num_labels=3, id2label={0: "sports", 1: "politics", 2: "neutral"})
    started, lines = warm_start(other, params, teacher, teacher_params, WarmStartConfig(layers="uniform"))
    same(started["classifier"], params["classifier"])
    assert lines[1] == "pooler copied"


def test_distilbert_from_bert_computes_the_same_hidden_states():
    """DistilBERT has no token types: BERT's first type moves into the positions."""
    student, params = make("distilbert", seed=1)
    started, lines = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig("uniform", "copy"))
    mine, theirs = signal(student, started, "last_hidden"), signal(TEACHER, TEACHER_PARAMS, "last_hidden")
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert not any("pooler" in line for line in lines)  # it squashes with ReLU, BERT with tanh


def test_bert_from_bert_hash_gets_the_folded_table():
    teacher, teacher_params = make("bert_hash", seed=2, projections=5)
    student, params = make(seed=1)
    started, _ = warm_start(student, params, teacher, teacher_params, WarmStartConfig("uniform", "copy"))
    mine, theirs = signal(student, started, "logits"), signal(teacher, teacher_params, "logits")
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_shorter_student_takes_the_first_positions():
    student, params = make(seed=1, max_position_embeddings=8)
    started, _ = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig(embeddings="copy"))
    same(started["embeddings"]["position"], TEACHER_PARAMS["embeddings"]["position"][:8])


def test_robertas_positions_start_after_its_padding():
    teacher, teacher_params = make("roberta", seed=2, pad_token_id=1, type_vocab_size=1)
    student, params = make(seed=1, type_vocab_size=1)
    started, _ = warm_start(student, params, teacher, teacher_params, WarmStartConfig(embeddings="copy"))
    same(started["embeddings"]["position"][:10], teacher_params["embeddings"]["position"][2:])
    same(started["embeddings"]["position"][10:], params["embeddings"]["position"][10:])


def test_svd_fills_a_factorised_table_with_centred_unit_directions():
    student, params = make("bert_hash", seed=1, hidden_size=10, projections=3)
    started, lines = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig(embeddings="svd"))
    table = np.asarray(started["embeddings"]["word_table"], np.float64)
    np.testing.assert_allclose(table.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(table.T @ table / 40, np.eye(3), atol=1e-5)
    words = np.asarray(TEACHER_PARAMS["embeddings"]["word"], np.float64)
    u = np.linalg.svd(words - words.mean(0), full_matrices=False)[0][:, :3]
    np.testing.assert_allclose(np.abs(u.T @ table / np.sqrt(40)), np.eye(3), atol=1e-5)
    same(started["embeddings"]["word_projection"], params["embeddings"]["word_projection"])
    assert lines == ["word table from the 3 largest directions of the teacher's, unit standard deviation"]


def test_svd_beside_copied_layers_approximates_what_they_read():
    """As wide a factorisation as the teacher makes the student the teacher itself; a narrower one the nearest to it."""
    student, params = make("bert_hash", seed=1, projections=16)
    started, lines = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig("uniform", "svd"))
    mine, theirs = signal(student, started, "logits"), signal(TEACHER, TEACHER_PARAMS, "logits")
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)
    assert lines[-1] == "word embedding from the 16 largest directions of the teacher's, its other tables copied"
    student, params = make("bert_hash", seed=1, projections=6)
    started, _ = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig("uniform", "svd"))
    embeddings = started["embeddings"]
    kernel, bias = embeddings["word_projection"]["kernel"], embeddings["word_projection"]["bias"]
    words = np.asarray(TEACHER_PARAMS["embeddings"]["word"], np.float64)
    u, s, v = np.linalg.svd(words - words.mean(0), full_matrices=False)
    nearest = u[:, :6] * s[:6] @ v[:6] + words.mean(0)
    np.testing.assert_allclose(embeddings["word_table"] @ kernel + bias[None], nearest, atol=1e-5)


def test_svd_at_the_same_width_is_a_copy():
    """Turning the coordinates would leave copied layers reading another embedding."""
    student, params = make(seed=1)
    started, _ = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig("uniform", "svd"))
    same(started, TEACHER_PARAMS)


def test_svd_narrows_every_table_with_one_map():
    student, params = make(seed=1, hidden_size=10)
    started, _ = warm_start(student, params, TEACHER, TEACHER_PARAMS, WarmStartConfig(embeddings="svd"))
    mine, theirs = started["embeddings"], TEACHER_PARAMS["embeddings"]
    words = np.asarray(theirs["word"], np.float64)
    np.testing.assert_allclose(np.std(mine["word"]), np.std(words), rtol=1e-5)
    directions = np.linalg.svd(words - words.mean(0), full_matrices=False)[2][:10].T
    scale = np.std(words) / np.std((words - words.mean(0)) @ directions)
    for name in ("position", "token_type"):
        gram = np.asarray(mine[name], np.float64) @ np.asarray(mine["word"], np.float64).T
        expected = np.asarray(theirs[name]) @ directions @ directions.T @ (words - words.mean(0)).T * scale**2
        np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-4)  # whatever the signs of the directions
    same(mine["norm"], params["embeddings"]["norm"])


@pytest.mark.parametrize(
    ("student", "config", "message"),
    [
        (
            {"hidden_size": 10},
            WarmStartConfig(embeddings="copy"),
            r"10 for the student and 16 .* use `embeddings: svd`",
        ),
        ({"hidden_size": 18}, WarmStartConfig(embeddings="svd"), r"svd can only narrow, .* 18 wide .* is 16"),
        ({"vocab_size": 41}, WarmStartConfig(embeddings="svd"), r"41 tokens and the teacher's 40"),
        ({"model_type": "bert_hash"}, WarmStartConfig(embeddings="copy"), r"factorised .* use `embeddings: svd`"),
        ({"intermediate_size": 8}, WarmStartConfig(layers="first"), r"differ in intermediate_size 8 and 32"),
        ({"num_hidden_layers": 7}, WarmStartConfig(layers="uniform"), r"has 7 layers and the teacher only 6"),
        ({"num_hidden_layers": 2}, WarmStartConfig(layers=(0, 6)), r"\[0, 6\] .* in 0 … 5 .* student's 2 layers"),
        ({"num_hidden_layers": 2}, WarmStartConfig(layers=(0, 1, 2)), r"student's 2 layers"),
    ],
)
def test_what_cannot_be_copied_is_said(student, config, message):
    model, params = make(seed=1, **student)
    with pytest.raises(ModelError, match=message):
        warm_start(model, params, TEACHER, TEACHER_PARAMS, config)
