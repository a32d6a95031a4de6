"""Decoders' values and gradients against transformers' PyTorch models, on tiny random ones with padding either side."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import VARIANTS, batch, hf_directory
from tiny_encoders import jit

from jaxdistill import models
from jaxdistill.models.convert.save import to_tensors

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

TOLERANCE = 1e-5


class Case(NamedTuple):
    """transformers' model, ours as loaded from what it saved, a batch, our logits and our gradients."""

    theirs: Any
    model: models.Model
    params: dict[str, Any]
    of: dict[str, np.ndarray]
    logits: np.ndarray
    gradients: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    directory, theirs = hf_directory(tmp_path_factory.mktemp("decoder"), request.param)
    model, params = models.from_pretrained(directory, task="causal_lm")
    # transformers stretches dynamic RoPE by the padded length, we by the document's own
    of = batch(padded="dynamic" not in request.param)

    def loss(params, of):
        logits = model.apply(params, of)["logits"]
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), of["labels"][..., None], axis=-1)[..., 0]
        real = of["attention_mask"].astype(jnp.float32)
        return -jnp.sum(taken * real) / jnp.sum(real), logits

    gradients, logits = jit(jax.grad(loss, has_aux=True))(params, of)
    return Case(theirs, model, params, of, np.asarray(logits), to_tensors(model, gradients))


def torch_inputs(of: dict) -> dict[str, Any]:
    return {name: torch.tensor(of[name], dtype=torch.long) for name in ("input_ids", "attention_mask")}


def test_logits(case):
    with torch.no_grad():
        expected = case.theirs(**torch_inputs(case.of)).logits.numpy()
    real = case.of["attention_mask"] > 0
    np.testing.assert_allclose(case.logits[real], expected[real], atol=TOLERANCE, rtol=TOLERANCE)


def test_gradients_of_every_parameter(case):
    case.theirs.zero_grad()
    logits = case.theirs(**torch_inputs(case.of)).logits
    real = torch.tensor(case.of["attention_mask"] > 0)
    labels = torch.tensor(case.of["labels"], dtype=torch.long)
    torch.nn.functional.cross_entropy(logits[real], labels[real]).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in case.theirs.named_parameters()}
    assert expected.keys() == case.gradients.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in case.gradients.items():
        # The floor is for key biases, whose true gradient is nearly 0.
        scale = max(np.abs(expected[name]).max(), 1e-3 * largest)
        np.testing.assert_allclose(gradient, expected[name], atol=1e-4 * scale, rtol=0, err_msg=name)


def test_export_gives_the_same_logits(case, tmp_path):
    """transformers' Auto class finds every tensor and the same configuration."""
    import transformers

    models.save_pretrained(case.model, case.params, tmp_path / "export")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", output_loading_info=True, attn_implementation="eager"
    )
    theirs, report = loaded
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        expected = case.theirs(**torch_inputs(case.of)).logits.numpy()
        got = theirs(**torch_inputs(case.of)).logits.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)
    assert models.config_from_hf(tmp_path / "export") == case.model.config


@pytest.mark.parametrize("variant", ["biases, tied, wide heads, linear RoPE", "qwen2"])
def test_hidden_states_and_attentions(tmp_path, variant):
    directory, theirs = hf_directory(tmp_path, variant)
    model, params = models.from_pretrained(directory, task="causal_lm")
    of = batch(padded=False)
    with torch.no_grad():
        expected = theirs(**torch_inputs(of), output_hidden_states=True, output_attentions=True)
    out = jit(lambda p, b: model.apply(p, b, ("hidden_states", "attentions", "last_hidden")))(params, of)
    hidden = torch.stack(expected.hidden_states).numpy()
    np.testing.assert_allclose(out["hidden_states"], hidden, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(out["attentions"], torch.stack(expected.attentions).numpy(), atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(out["last_hidden"], out["hidden_states"][-1])
