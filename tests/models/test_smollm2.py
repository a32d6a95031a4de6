"""The real pretrained SmolLM2-135M (a Llama) against transformers: logits, perplexity, and what it is exported as."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_encoders import jit

from jaxdistill import models

pytestmark = [pytest.mark.parity, pytest.mark.slow]
torch = pytest.importorskip("torch")

PARAGRAPH = """The harbour was quiet in the early morning. A few fishermen were already preparing their boats, checking
the nets and talking in low voices about the weather. The old lighthouse stood at the end of the pier, its white walls
catching the first light of the sun. Children would come later, after breakfast, to look for crabs between the rocks,
and the market would open with its smell of bread, coffee and salt. Nobody was in a hurry. It was the kind of day that
begins slowly and stays in the memory for years, although nothing in particular happens in it."""


@pytest.fixture(scope="module")
def directory():
    """A Hugging Face directory of SmolLM2-135M (its instruct version, dequantised, will do)."""
    named = os.environ.get("JAXDISTILL_SMOLLM2")
    if not named:
        pytest.skip("set JAXDISTILL_SMOLLM2 to a directory of SmolLM2-135M")
    return Path(named)


@pytest.fixture(scope="module")
def ids(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)(PARAGRAPH, return_tensors="np")["input_ids"].astype(np.int32)


@pytest.fixture(scope="module")
def expected(directory, ids):
    """transformers' logits in float32."""
    return torch_logits(directory, ids)


@pytest.fixture(scope="module")
def loaded(directory):
    return models.from_pretrained(directory, task="causal_lm")


def torch_logits(directory, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids, dtype=torch.long)).logits.numpy()


def perplexity(logits, ids):
    logits = logits[0, :-1].astype(np.float64)
    taken = np.take_along_axis(logits, ids[0, 1:, None], axis=-1)[:, 0]
    return float(np.exp(np.mean(np.log(np.exp(logits).sum(-1)) - taken)))


def test_logits_and_perplexity(loaded, ids, expected):
    model, params = loaded
    assert models.parameter_count(params) == 134_515_008
    logits = np.asarray(jit(model.apply)(params, {"input_ids": ids})["logits"])
    ours, theirs = perplexity(logits, ids), perplexity(expected, ids)
    print(f"{ids.shape[1]} tokens; largest difference {np.abs(logits - expected).max():.2e}; {ours:.6f}, {theirs:.6f}")
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    assert abs(ours - theirs) < 1e-3
    assert theirs < 40  # a pretrained model, not a random one


def test_export_gives_the_same_logits(loaded, ids, expected, tmp_path):
    """In shards of 200 MB."""
    model, params = loaded
    models.save_pretrained(model, params, tmp_path / "export", max_shard_bytes=200 * 10**6)
    assert len(list((tmp_path / "export").glob("model-*-of-*.safetensors"))) == 3
    np.testing.assert_allclose(torch_logits(tmp_path / "export", ids), expected, atol=1e-5, rtol=0)
    back = models.from_pretrained(tmp_path / "export", task="causal_lm")
    assert back[0] == model
    jax.tree.map(np.testing.assert_array_equal, back[1], params)
