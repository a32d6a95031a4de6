"""`jaxdistill export` of language models: what transformers reads back, and what the model card says."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_language_model import VOCAB_SIZE, byte_tokenizer, write_language_model

from jaxdistill import data, models
from jaxdistill.errors import ModelError
from jaxdistill.export import export_stage

IDS = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, 9)).astype(np.int32)


def row(key: str, teacher: list[str] | None, *, perplexity: float, **fields) -> dict:
    metrics = {"perplexity": perplexity, "accuracy": 0.4, "loss": 3.0, "kl": 0.0125, "agreement": 0.9, "tokens": 5000.0}
    return {
        "name": key.partition("/")[0],
        "key": key,
        "teacher": teacher,
        "given": False,
        "architecture": "llama L2 H16",
        "parameters": 5714,
        "eval": {"validation": metrics},
        "train": {"steps": 1200, "examples": 2400, "tokens": 614_400},
        **fields,
    }


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: org/big, given → student; and a control."""
    run = tmp_path_factory.mktemp("runs") / "r"
    write_language_model(run / "stages" / "student" / "student", max_shard_bytes=10_000)
    write_language_model(run / "stages" / "scratch" / "student", seed=1, tie_word_embeddings=True)
    rows = [
        row("/models/big", None, perplexity=12.25, given=True, train=None),
        row("student", ["/models/big"], perplexity=23.456),
        row("scratch", None, perplexity=1850.0),
    ]
    (run / "summary.json").write_text(json.dumps({"name": "r", "jaxdistill": "0.1.0", "stages": rows}))
    return run


def logits(directory: Path) -> np.ndarray:
    model, params = models.from_pretrained(directory, task="causal_lm")
    return np.asarray(model.apply(params, {"input_ids": jnp.asarray(IDS)})["logits"])


def test_the_exported_model_is_the_stages_student(jaxdistill, run_directory, tmp_path):
    student = run_directory / "stages" / "student" / "student"
    assert len(list(student.glob("*.safetensors"))) > 1
    result = jaxdistill("export", run_directory, tmp_path / "out", "--stage", "student")
    assert result.status == 0, result.err
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(student))
    tokenizers = [data.load_tokenizer(directory) for directory in (student, tmp_path / "out")]
    assert tokenizers[0].fingerprint == tokenizers[1].fingerprint


@pytest.mark.parity
@pytest.mark.parametrize("stage", ["student", "scratch"])
def test_transformers_loads_what_was_exported(run_directory, tmp_path, stage):
    torch = pytest.importorskip("torch")
    import transformers

    out = export_stage(run_directory, tmp_path / "out", stage=stage)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(logits(out), expected, atol=2e-5)
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.generation_config.bos_token_id == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("hé").input_ids == byte_tokenizer()("hé").input_ids


def test_shards_are_rounded_one_by_one(tmp_path):
    source = write_language_model(tmp_path / "source")
    out = export_stage(source, tmp_path / "out", dtype="bfloat16", max_shard_bytes=10_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    half, full = (models.from_pretrained(each, task="causal_lm")[1] for each in (out, source))
    assert index["metadata"]["total_size"] == 2 * models.parameter_count(full)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-2, atol=1e-6)


def test_the_models_own_generation_settings_are_kept(tmp_path):
    source = write_language_model(tmp_path / "source", eos_token_id=[2, 7])
    written = export_stage(source, tmp_path / "written") / "generation_config.json"
    assert json.loads(written.read_text()) == {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0}
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 7, 9], "top_k": 5}')
    kept = export_stage(source, tmp_path / "kept") / "generation_config.json"
    assert json.loads(kept.read_text()) == {"eos_token_id": [2, 7, 9], "top_k": 5}


def test_the_card_tells_the_chain_and_its_numbers(run_directory, tmp_path):
    card = (export_stage(run_directory, tmp_path / "out", stage="student") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    assert "| model | learned from | parameters | split | perplexity | next-token accuracy |" in lines[0]
    assert "| big | given | 5,714 | validation | 12.25 |" in lines[2]
    assert "| student | big | 5,714 | validation | 23.46 | 0.4000 | 0.9000 | 0.0125 |" in lines[3]
    assert "distilled from `big` in 1,200 steps on 614,400 tokens" in card
    assert 'AutoModelForCausalLM.from_pretrained("out")' in card
    assert "F1" not in card
    scratch = (export_stage(run_directory, tmp_path / "scratch", stage="scratch") / "README.md").read_text()
    assert "trained on text alone" in scratch


def test_a_language_model_has_no_factorised_form(run_directory, tmp_path):
    with pytest.raises(ModelError, match="not a BertHash model"):
        export_stage(run_directory / "stages" / "scratch" / "student", tmp_path / "out", factorised=True)
