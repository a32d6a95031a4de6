"""Values and gradients against transformers' PyTorch models, on tiny random ones with padding and pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import ARCHITECTURES, apply, batch, hf_directory, jit, torch_inputs

from jaxdistill import models
from jaxdistill.models.convert.save import to_tensors

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """{architecture: (our model, our parameters, transformers' model)}, loaded from what transformers saved."""
    loaded = {}
    for architecture in ARCHITECTURES:
        directory, theirs = hf_directory(tmp_path_factory.mktemp(architecture), architecture, "classification")
        loaded[architecture] = (*models.from_pretrained(directory), theirs)
    return loaded


def close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_hidden_states_and_attentions(classifiers, architecture):
    model, params, theirs = classifiers[architecture]
    of = batch(architecture)
    with torch.no_grad():
        expected = theirs(**torch_inputs(architecture, of), output_hidden_states=True, output_attentions=True)
    out = apply(model, ("logits", "hidden_states", "attentions", "last_hidden"))(params, of)
    close(out["logits"], expected.logits)
    close(out["hidden_states"], torch.stack(expected.hidden_states))
    close(out["attentions"], torch.stack(expected.attentions))
    close(out["last_hidden"], expected.hidden_states[-1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_every_parameter(classifiers, architecture):
    model, params, theirs = classifiers[architecture]
    of = batch(architecture)

    def loss(params, of):
        log_probabilities = jax.nn.log_softmax(model.apply(params, of)["logits"])
        return -jnp.mean(jnp.take_along_axis(log_probabilities, of["labels"][:, None], axis=1))

    ours = to_tensors(model, jit(jax.grad(loss))(params, of))
    theirs.zero_grad()
    theirs(**torch_inputs(architecture, of), labels=torch.tensor(of["labels"], dtype=torch.long)).loss.backward()
    expected = {
        name: parameter.grad.numpy() for name, parameter in theirs.named_parameters() if parameter.grad is not None
    }
    missing = {name for name in expected.keys() - ours.keys() if "pooler" not in name}
    assert not missing
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in ours.items():
        # The floor is for key biases, whose true gradient is 0.
        scale = max(np.abs(expected[name]).max(), 1e-3 * largest)
        np.testing.assert_allclose(gradient, expected[name], atol=1e-4 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_lm_logits(tmp_path, architecture):
    directory, theirs = hf_directory(tmp_path, architecture, "masked_lm")
    model, params = models.from_pretrained(directory, task="masked_lm")
    of = batch(architecture)
    with torch.no_grad():
        expected = theirs(**torch_inputs(architecture, of)).logits
    out = apply(model, ("logits", "head"))(params, of)
    close(out["logits"], expected, 2e-5)
    head = out["head"]
    np.testing.assert_allclose(
        head["input"] @ head["kernel"] + head["bias"].reshape(1, 1, -1), out["logits"], atol=2e-5
    )


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations(tmp_path, activation):
    directory, theirs = hf_directory(tmp_path, "bert", "classification", hidden_act=activation)
    model, params = models.from_pretrained(directory)
    of = batch()
    with torch.no_grad():
        expected = theirs(**torch_inputs("bert", of)).logits
    close(apply(model)(params, of)["logits"], expected)


def test_padding_anywhere_and_left(classifiers):
    """Masks with holes and padding on the left: BERT's positions do not follow the mask."""
    model, params, theirs = classifiers["bert"]
    of = batch(length=10)
    of["attention_mask"] = np.random.default_rng(1).integers(0, 2, of["attention_mask"].shape).astype(np.int32)
    of["attention_mask"][:, 0] = 1
    of["attention_mask"][1, :4] = 0
    with torch.no_grad():
        expected = theirs(**torch_inputs("bert", of)).logits
    close(apply(model)(params, of)["logits"], expected)


def test_roberta_padded_on_the_left(classifiers):
    model, params, theirs = classifiers["roberta"]
    of = batch("roberta")
    of = {name: np.ascontiguousarray(value[:, ::-1]) if value.ndim == 2 else value for name, value in of.items()}
    with torch.no_grad():
        expected = theirs(**torch_inputs("roberta", of), output_hidden_states=True)
    out = apply(model, ("hidden_states",))(params, of)
    real = of["attention_mask"] > 0
    close(out["hidden_states"][:, real], torch.stack(expected.hidden_states)[:, torch.tensor(real)])


@pytest.mark.parametrize("task", ["classification", "masked_lm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exported_model_gives_the_same_logits(tmp_path, architecture, task):
    """Our fresh model, written, loaded by transformers' Auto class."""
    import transformers

    shape = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 26, "initializer_range": 0.2}
    config = {"model_type": architecture, **shape, "id2label": {"0": "bad", "1": "so-so", "2": "good"}}
    model = models.build(config, task=task)
    params = jit(model.init)(jax.random.key(0))
    models.save_pretrained(model, params, tmp_path / "student")
    auto = {"classification": "AutoModelForSequenceClassification", "masked_lm": "AutoModelForMaskedLM"}[task]
    theirs, report = getattr(transformers, auto).from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert theirs.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    of = batch(architecture)
    with torch.no_grad():
        expected = theirs.eval()(**torch_inputs(architecture, of)).logits
    close(apply(model)(params, of)["logits"], expected)
