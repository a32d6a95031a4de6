"""A stage of two phases: first between the layers, by learned projections, then on logits; what is left of it all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_chain import TINY, VOCABULARY, assert_same_params, chain_config, final_params, run, write_config

from jaxdistill import data, models
from jaxdistill.errors import ConfigError

pytestmark = pytest.mark.slow

KEYS = ["student.between", "student"]
BETWEEN = [
    {"type": "embedding_mse", "projection": "shared"},
    {"type": "hidden_state_mse", "projection": "per_pair"},
    {"type": "attention_mse"},
    {"type": "cosine", "weight": 0},
]


def config(material: Path, output: Path, teacher: Path):
    """A student half as wide as its teacher; the second phase's learning rate is next to nothing."""
    changed = chain_config(material, output)
    changed["stages"] = [
        {
            "name": "student",
            "teacher": {"pretrained": str(teacher)},
            "student": {"architecture": "bert", **TINY, "hidden_size": 8},
            "loss": [
                {"phase": "between", "terms": BETWEEN, "share": 0.6},
                {"phase": "logits", "terms": {"preset": "hinton"}, "learning_rate": 1e-30},
            ],
            "train": {"steps": 10, "batch_size": 16, "learning_rate": 3e-3, "warmup": 0},
            "checkpoint": {"every": 3},
        }
    ]
    return changed


@pytest.fixture(scope="module")
def teacher(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any model with a classifier, twice as deep and as wide as the student."""
    directory = tmp_path_factory.mktemp("teacher") / "model"
    shape = {"model_type": "bert", "vocab_size": len(VOCABULARY), "max_position_embeddings": 64, **TINY}
    names = {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    model = models.build(models.config_from_hf({**shape, **names, "num_hidden_layers": 4}), task="classification")
    tokenizer = data.load_tokenizer(str(material / "encoder"))
    models.save_pretrained(model, model.init(jax.random.key(1)), directory, tokenizer=tokenizer)
    return directory


@pytest.fixture(scope="module")
def phased(material: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("phased") / "run"
    console = Console(record=True, width=250)
    run(write_config(output.parent / "tiny.yaml", config(material, output, teacher)), console=console)
    (output.parent / "console.txt").write_text(console.export_text())
    return output


def test_phases_are_stages_of_the_summary(phased: Path):
    rows = json.loads((phased / "summary.json").read_text())["stages"][1:]
    assert [(row["key"], row["phase"], row["begins"]) for row in rows] == [
        ("student.between", "between", None),
        ("student", "logits", "student.between"),
    ]
    assert [row["train"]["steps"] for row in rows] == [6, 4]
    logged = []
    for key in KEYS:
        lines = (phased / "stages" / key / "metrics.jsonl").read_text().splitlines()
        logged.append(next(row for row in map(json.loads, lines) if row["kind"] == "train"))
    assert {"embedding_mse", "hidden_state_mse", "attention_mse"} <= logged[0].keys()
    assert not {"cosine", "forward_kl", "accuracy"} & logged[0].keys()
    assert {"forward_kl", "cross_entropy"} <= logged[1].keys()


def test_a_phase_goes_on_with_the_student_of_the_one_before(phased: Path):
    """All but what has no update of its own: at this learning rate nothing moves."""
    before, after = (final_params(phased, key) for key in KEYS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-20), before, after)


def test_projections_are_kept_for_a_resume_and_for_nothing_else(phased: Path):
    stage = phased / "stages" / KEYS[0]
    record = json.loads((stage / "stage.json").read_text())
    leaves = json.loads((stage / "checkpoints" / str(record["checkpoint"]) / "manifest.json").read_text())["manifest"][
        "leaves"
    ]
    assert leaves["projections.hidden_state_mse.teacher_1"] == "float32[2,8,16]"
    assert leaves["opt_state.mu.projections.embedding_mse.teacher_1"] == "float32[1,8,16]"
    for key in KEYS:
        model, params = models.from_pretrained(phased / "stages" / key / "student", task="classification")
        rows = {row["key"]: row for row in json.loads((phased / "summary.json").read_text())["stages"]}
        assert rows[key]["parameters"] == models.parameter_count(params)
        assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))


def test_a_resume_inside_any_phase_is_bitwise_the_same(phased: Path, material: Path, teacher: Path, tmp_path: Path):
    """Both phases lose their end; the second goes on only because the first ends with the very same student."""
    output = tmp_path / "run"
    shutil.copytree(phased, output)
    for key in KEYS:
        stage = output / "stages" / key
        (stage / "stage.json").unlink()
        newest = max((path for path in (stage / "checkpoints").iterdir()), key=lambda path: int(path.name))
        shutil.rmtree(newest)
        assert (stage / "checkpoints" / "3").is_dir()
    console = Console(record=True, width=200)
    run(write_config(tmp_path / "tiny.yaml", config(material, output, teacher)), console=console)
    text = console.export_text()
    assert "student.between: continues at step 3 of 6" in text
    assert "student: continues at step 3 of 4" in text
    assert_same_params(phased, output, KEYS)


def test_the_run_says_its_phases_and_what_a_width_needs(phased: Path, material: Path, teacher: Path, tmp_path: Path):
    text = (phased.parent / "console.txt").read_text()
    assert "between: MSE(embeddings·W) + MSE(hidden·Wᵢ, uniform layers)" in text
    assert "logits: 0.7·T²·KL(T=2) + 0.3·CE" in text
    assert "student.between: hidden_state_mse: 1←2, 2←4" in text
    settings = config(material, tmp_path / "run", teacher)
    del settings["stages"][0]["loss"][0]["terms"][1]["projection"]
    with pytest.raises(ConfigError, match=r"stages.student.loss.between.1: hidden_state_mse .*projection: per_pair"):
        run(write_config(tmp_path / "none.yaml", settings))
