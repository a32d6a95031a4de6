"""The real pretrained MiniLM-L6 against transformers: every hidden state, and the model it is exported as."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import jit, torch_inputs

from jaxdistill import models

pytestmark = [pytest.mark.parity, pytest.mark.network]
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def minilm():
    """Its directory: named in JAXDISTILL_MINILM, or fetched before; these tests download nothing themselves."""
    named = os.environ.get("JAXDISTILL_MINILM")
    if named:
        return Path(named)
    from jaxdistill.data.assets import ASSETS
    from jaxdistill.data.cache import default_cache_dir

    directory = default_cache_dir() / "assets" / f"minilm-l6-{ASSETS['minilm-l6'].version}"
    if not directory.is_dir():
        pytest.skip("set JAXDISTILL_MINILM, or run `jaxdistill fetch minilm-l6` first")
    return directory


def real_batch(directory):
    """Sentences and pairs of several lengths, by its own tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    first = [
        "a gripping, funny film",
        "no",
        "it never finds its feet , though the cast tries hard and it shows",
    ] * 2
    second = ["and one I would see again", "", "", "", "yes", "unbelievable nonsense: 100% of it"]
    encoded = tokenizer(first, second, padding=True, return_tensors="np")
    return {name: value.astype(np.int32) for name, value in encoded.items()}


def test_every_hidden_state_and_attention(minilm):
    from transformers import BertModel

    theirs = BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    model, params = models.from_pretrained(minilm)
    of = real_batch(minilm)
    with torch.no_grad():
        expected = theirs(**torch_inputs("bert", of), output_hidden_states=True, output_attentions=True)
    out = jit(lambda p, b: model.apply(p, b, ("hidden_states", "attentions")))(params, of)
    real = of["attention_mask"] > 0
    theirs_hidden = torch.stack(expected.hidden_states).numpy()
    np.testing.assert_allclose(out["hidden_states"][:, real], theirs_hidden[:, real], atol=1e-4, rtol=0)
    np.testing.assert_allclose(out["attentions"], torch.stack(expected.attentions).numpy(), atol=1e-4, rtol=0)


def test_export_gives_the_same_logits(minilm, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model, params = models.from_pretrained(minilm, num_labels=2, seed=1)
    models.save_pretrained(model, params, tmp_path / "export")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    of = real_batch(minilm)
    with torch.no_grad():
        expected = theirs(**torch_inputs("bert", of)).logits.numpy()
    np.testing.assert_allclose(jit(model.apply)(params, of)["logits"], expected, atol=1e-4, rtol=0)
