"""BertHash: against BERT given its word embedding, exported as that BERT, loaded whatever its tensors are called."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_encoders import BERT_SHAPE, apply, batch, jit, torch_inputs

from jaxdistill import models
from jaxdistill.errors import ModelError
from jaxdistill.models.convert.save import to_tensors

CONFIG = BERT_SHAPE | {"model_type": "bert_hash", "projections": 5, "num_labels": 3}


@pytest.fixture(scope="module")
def student():
    model = models.build(CONFIG)
    params = jit(model.init)(jax.random.key(0))
    params["embeddings"]["word_projection"]["bias"] = 0.1 * jax.random.normal(jax.random.key(1), (16,))
    return model, params


def test_shape_and_size(student):
    _, params = student
    assert params["embeddings"]["word_table"].shape == (60, 5)
    assert params["embeddings"]["word_projection"]["kernel"].shape == (5, 16)
    femto = models.build(
        {
            "model_type": "bert_hash",
            "hidden_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 200,
        }
    )
    assert models.parameter_count(models.parameter_shapes(femto)) == 242_662  # measured with PyTorch on the same shape


@pytest.mark.parity
def test_logits_and_gradients_against_torch(student):
    """A reference in PyTorch: table, linear, and transformers' BERT fed with `inputs_embeds`."""
    torch = pytest.importorskip("torch")
    import transformers

    model, params = student
    theirs = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT_SHAPE, num_labels=3)).eval()
    tensors = {name: torch.tensor(value) for name, value in to_tensors(model, params).items()}
    theirs.load_state_dict(tensors)
    words = params["embeddings"]
    table, kernel, bias = (
        torch.tensor(np.array(value), requires_grad=True)
        for value in (words["word_table"], words["word_projection"]["kernel"], words["word_projection"]["bias"])
    )
    of = batch()
    inputs = torch_inputs("bert", of)
    embedded = table[inputs.pop("input_ids")] @ kernel + bias
    expected = theirs(inputs_embeds=embedded, **inputs).logits
    torch.logsumexp(expected, dim=-1).sum().backward()

    def loss(params):
        return jnp.sum(jax.nn.logsumexp(model.apply(params, of)["logits"], axis=-1))

    np.testing.assert_allclose(apply(model)(params, of)["logits"], expected.detach().numpy(), atol=1e-5, rtol=0)
    ours = jit(jax.grad(loss))(params)["embeddings"]
    for got, reference in (
        (ours["word_table"], table),
        (ours["word_projection"]["kernel"], kernel),
        (ours["word_projection"]["bias"], bias),
    ):
        scale = float(reference.grad.abs().max())
        np.testing.assert_allclose(got, reference.grad.numpy(), atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("task", ["classification", "masked_lm"])
def test_exported_as_the_bert_it_equals(tmp_path, task):
    model = models.build(CONFIG, task=task)
    params = jit(model.init)(jax.random.key(0))
    models.save_pretrained(model, params, tmp_path / "bert")
    folded, folded_params = models.from_pretrained(tmp_path / "bert", task=task)
    assert folded.config.model_type == "bert"
    of = batch()
    ours, theirs = apply(model)(params, of), apply(folded)(folded_params, of)
    np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=2e-6)


def test_export_loads_in_transformers(tmp_path, student):
    torch = pytest.importorskip("torch")
    import transformers

    model, params = student
    models.save_pretrained(model, params, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    of = batch()
    with torch.no_grad():
        expected = theirs(**torch_inputs("bert", of)).logits.numpy()
    np.testing.assert_allclose(apply(model)(params, of)["logits"], expected, atol=1e-5, rtol=0)


def test_factorised_form_comes_back_bit_by_bit(tmp_path, student):
    model, params = student
    models.save_pretrained(model, params, tmp_path, factorised=True)
    assert json.loads((tmp_path / "config.json").read_text())["projections"] == 5
    reports = []
    loaded, back = models.from_pretrained(tmp_path, report=reports.append)
    assert loaded == model
    assert str(reports[0]) == ""
    jax.tree.map(np.testing.assert_array_equal, params, back)


def rename(directory, change):
    """Rewrite a saved model with other tensor names or without some (None)."""
    path = directory / "model.safetensors"
    tensors = {change(name): value for name, value in load_file(path).items()}
    tensors.pop(None, None)
    save_file(tensors, path)


@pytest.mark.parametrize("with_bias", [True, False])
def test_published_names_are_told_apart_by_shape(tmp_path, student, with_bias):
    """No `bert.` prefix, unknown names, no pooler or classifier, perhaps no bias: as the published ones may be."""
    model, params = student
    models.save_pretrained(model, params, tmp_path, factorised=True)

    def published(name):
        if name.startswith(("bert.pooler", "classifier")) or (not with_bias and name.endswith("projections.bias")):
            return None
        name = name.removeprefix("bert.")
        return name.replace("word_embeddings.embeddings", "hash.grid").replace(
            "word_embeddings.projections", "hash.out"
        )

    rename(tmp_path, published)
    reports = []
    _, back = models.from_pretrained(tmp_path, report=reports.append)
    np.testing.assert_array_equal(back["embeddings"]["word_table"], params["embeddings"]["word_table"])
    projection = back["embeddings"]["word_projection"]
    np.testing.assert_array_equal(projection["kernel"], params["embeddings"]["word_projection"]["kernel"])
    expected = params["embeddings"]["word_projection"]["bias"] if with_bias else np.zeros(16, np.float32)
    np.testing.assert_array_equal(projection["bias"], expected)
    assert {"bert.pooler.dense.weight", "classifier.bias"} <= set(reports[0].newly_initialised)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"bert.embeddings.odd": np.zeros((3, 4), np.float32)}, r"bert\.embeddings\.odd \[3, 4\]"),
        ({"bert.embeddings.second": np.zeros((60, 5), np.float32)}, "do not fit"),
    ],
)
def test_leftover_embedding_tensors_are_an_error(tmp_path, student, extra, message):
    model, params = student
    models.save_pretrained(model, params, tmp_path, factorised=True)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | extra, path)
    with pytest.raises(ModelError, match=message):
        models.from_pretrained(tmp_path)


def test_missing_table_is_an_error(tmp_path, student):
    model, params = student
    models.save_pretrained(model, params, tmp_path, factorised=True)
    rename(tmp_path, lambda name: None if name.endswith("embeddings.embeddings.weight") else name)
    with pytest.raises(ModelError, match="missing: word_table"):
        models.from_pretrained(tmp_path)


def test_a_vocabulary_as_large_as_the_width(tmp_path):
    """Table and projection then have the same shape: the one with a bias, or named so, is the projection."""
    model = models.build(CONFIG | {"vocab_size": 16})
    params = jit(model.init)(jax.random.key(0))
    models.save_pretrained(model, params, tmp_path, factorised=True)
    jax.tree.map(np.testing.assert_array_equal, params, models.from_pretrained(tmp_path)[1])
    rename(
        tmp_path,
        lambda name: name.replace("word_embeddings.projections", "a").replace("word_embeddings.embeddings", "z"),
    )
    jax.tree.map(np.testing.assert_array_equal, params, models.from_pretrained(tmp_path)[1])


@pytest.mark.parametrize("task", ["classification", "masked_lm"])
def test_a_decoder_of_its_own_is_ignored(tmp_path, student, task):
    """A pretraining head cannot share the factorised table: its decoder is a tensor of the vocabulary by the width."""
    model, params = student
    models.save_pretrained(model, params, tmp_path, factorised=True)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"cls.predictions.decoder.weight": np.zeros((60, 16), np.float32)}, path)
    reports = []
    _, back = models.from_pretrained(tmp_path, task=task, report=reports.append)
    assert "cls.predictions.decoder.weight" in reports[0].ignored
    jax.tree.map(np.testing.assert_array_equal, params["embeddings"], back["embeddings"])
