"""Token classification and question answering against transformers' PyTorch models: values, gradients, files."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import ARCHITECTURES, LABELS, SUFFIXES, apply, batch, hf_directory, jit, pad, torch_inputs

from jaxdistill import models
from jaxdistill.models.convert.save import to_tensors

TASKS = ("token_classification", "question_answering")
IN_SECONDS = {("bert", "token_classification"), ("distilbert", "question_answering")}
MODELS = [
    pytest.param(architecture, task, marks=() if (architecture, task) in IN_SECONDS else pytest.mark.slow)
    for architecture in ARCHITECTURES
    for task in TASKS
]
SHAPE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32, "max_position_embeddings": 26, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def loaded(tmp_path_factory, torch):
    """(our model, our parameters, transformers' model) by architecture and task, from what transformers saved."""

    def load(architecture, task):
        directory, theirs = hf_directory(tmp_path_factory.mktemp(architecture), architecture, task)
        return (*models.from_pretrained(directory, task=task), theirs)

    return load


def real(of):
    return of["attention_mask"].astype(bool)


def ours_as_theirs(logits, task):
    """[B, S, C] of either task."""
    return logits if task == "token_classification" else jnp.swapaxes(logits, 1, 2)


def of_theirs(out, torch, task):
    return out.logits if task == "token_classification" else torch.stack([out.start_logits, out.end_logits], -1)


@pytest.mark.parity
@pytest.mark.parametrize(("architecture", "task"), MODELS)
def test_logits_and_every_gradient(loaded, torch, architecture, task):
    model, params, theirs = loaded(architecture, task)
    of = batch(architecture)
    rng = np.random.default_rng(3)
    labels = np.where(real(of), rng.integers(0, LABELS if task == "token_classification" else 2, real(of).shape), -1)

    def loss(params, of):
        logits = ours_as_theirs(model.apply(params, of)["logits"], task)
        finite = jnp.where(real(of)[..., None], logits, 0.0)
        log_probabilities = jax.nn.log_softmax(finite)
        picked = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(labels >= 0, picked, 0.0)), logits

    gradients, logits = jit(jax.grad(loss, has_aux=True))(params, of)
    expected = of_theirs(theirs(**torch_inputs(architecture, of)), torch, task)
    np.testing.assert_allclose(logits[real(of)], expected.detach().numpy()[real(of)], atol=1e-5, rtol=0)
    theirs.zero_grad()
    target = torch.tensor(labels, dtype=torch.long)
    entropy = torch.nn.functional.cross_entropy
    entropy(expected.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum").backward()
    ours = to_tensors(model, gradients)
    wanted = {name: each.grad.numpy() for name, each in theirs.named_parameters() if each.grad is not None}
    assert ours.keys() == wanted.keys()
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, gradient in ours.items():
        scale = max(np.abs(wanted[name]).max(), 1e-3 * largest)
        np.testing.assert_allclose(gradient, wanted[name], atol=1e-4 * scale, rtol=0, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize(("architecture", "task"), MODELS)
def test_exported_model_gives_the_same_logits(tmp_path, torch, architecture, task):
    """Our fresh model, written, loaded by transformers' Auto class without a tensor missing or left over."""
    import transformers

    names = {"0": "O", "1": "B-PER", "2": "I-PER"}
    model = models.build({"model_type": architecture, **SHAPE, "id2label": names}, task=task)
    params = jit(model.init)(jax.random.key(0))
    models.save_pretrained(model, params, tmp_path / "student")
    assert models.task_from_hf(tmp_path / "student") == task
    auto = getattr(transformers, "AutoModel" + SUFFIXES[task])
    theirs, report = auto.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    if task == "token_classification":
        assert theirs.config.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
    of = batch(architecture)
    with torch.no_grad():
        expected = of_theirs(theirs.eval()(**torch_inputs(architecture, of)), torch, task)
    logits = ours_as_theirs(apply(model)(params, of)["logits"], task)
    np.testing.assert_allclose(logits[real(of)], expected.numpy()[real(of)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["bert_hash", pytest.param("roberta", marks=pytest.mark.slow)])
def test_an_answer_is_never_in_padding_or_in_the_question(architecture):
    """−inf there, and elsewhere what it is with more padding."""
    projections = {"projections": 4} if architecture == "bert_hash" else {}
    model = models.build({"model_type": architecture, **SHAPE, **projections}, task="question_answering")
    params = jit(model.init)(jax.random.key(0))
    of = batch(architecture, length=8, size=3)
    p_mask = np.zeros_like(of["input_ids"])
    p_mask[:, 1:3] = 1
    logits = apply(model)(params, of | {"p_mask": p_mask})["logits"]
    assert logits.shape == (3, 2, 8)
    possible = real(of) & (p_mask == 0)
    for row, allowed in enumerate(possible):
        assert np.isfinite(logits[row][:, allowed]).all()
        assert np.isneginf(logits[row][:, ~allowed]).all()
    longer = pad(of, 12) | {"p_mask": np.pad(p_mask, ((0, 0), (0, 4)))}
    both = np.asarray(apply(model)(params, longer)["logits"][..., :8]), np.asarray(logits)
    np.testing.assert_allclose(*(np.nan_to_num(each, neginf=0.0) for each in both), atol=1e-6)


def test_a_head_for_texts_is_none_for_tokens(tmp_path):
    """Both are called `classifier` in BERT's files; a fresh head is drawn, and the report says so."""
    texts = models.build({"model_type": "bert", **SHAPE, "num_labels": 3}, task="classification")
    models.save_pretrained(texts, jit(texts.init)(jax.random.key(0)), tmp_path / "texts")
    reports = []
    _, params = models.from_pretrained(tmp_path / "texts", task="token_classification", report=reports.append)
    assert reports[0].newly_initialised == ("classifier.weight", "classifier.bias")
    assert {"classifier.weight", "classifier.bias"} <= set(reports[0].ignored)
    assert params["classifier"]["kernel"].shape == (16, 3)


def test_the_head_is_what_the_logits_are_made_of():
    for task in TASKS:
        model = models.build({"model_type": "bert", **SHAPE, "num_labels": 3}, task=task)
        of = batch()
        out = apply(model, ("logits", "head"))(jit(model.init)(jax.random.key(1)), of)
        head = out["head"]
        product = head["input"] @ head["kernel"] + head["bias"].reshape(1, 1, -1)
        np.testing.assert_allclose(ours_as_theirs(out["logits"], task)[real(of)], product[real(of)], atol=1e-5)
