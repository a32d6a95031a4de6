"""Teachers that read other tokenizers than the student: each its own ids, the same numbers however they are had."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_chain import PLAIN, TINY, VOCABULARY, chain_config, run, write_config, write_tokenizer

from jaxdistill import models

pytestmark = pytest.mark.slow

NAMES = {"id2label": {"0": "negative", "1": "positive"}}


def write_letters(directory: Path) -> int:
    """A tokenizer of letters, padded with 1 as RoBERTa's; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"zyxwvutsrqponmlkjihgfedcba"]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", behavior="isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    wrapped.model_input_names = ["input_ids", "attention_mask"]
    wrapped.save_pretrained(directory)
    return len(tokens)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two directories of random classifiers: a RoBERTa that reads letters, a DistilBERT that reads words."""
    letters, words = (tmp_path_factory.mktemp(name) for name in ("letters", "words"))
    write_tokenizer(words)
    shape = {**TINY, **NAMES, "initializer_range": 0.3}
    for directory, config in (
        (letters, {"model_type": "roberta", "vocab_size": write_letters(letters), "max_position_embeddings": 100}),
        (words, {"model_type": "distilbert", "vocab_size": len(VOCABULARY), "max_position_embeddings": 98}),
    ):
        model = models.build(config | shape)
        models.save_pretrained(model, jax.jit(model.init)(jax.random.key(len(config["model_type"]))), directory)
    return letters, words


def config(material: Path, output: Path, teachers: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    """One stage taught by both; no dropout, so that every way of running it has the same losses."""
    made = chain_config(material, output, **changes)
    made["data"]["max_length"] = 96
    made["tokenizer"] = str(teachers[1])
    student = {"architecture": "bert", **TINY, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    made["stages"] = [
        {
            "name": "student",
            "teacher": [{"pretrained": str(teachers[0]), "weight": 3.0}, {"pretrained": str(teachers[1])}],
            "student": student,
            "loss": [{"type": "forward_kl", "temperature": 2.0}, {"type": "logit_mse", "weight": 0.1}],
            "train": {"steps": 8, "batch_size": 16, "learning_rate": 1e-3, "log_every": 1},
        }
    ]
    return made


def losses(output: Path) -> list[float]:
    lines = (output / "stages" / "student" / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if entry["kind"] == "train"]


@pytest.mark.long
def test_each_teacher_reads_its_own_tokenizer(material: Path, teachers: tuple[Path, Path], tmp_path: Path):
    """Given teachers' losses on the test set are those transformers computes from their own tokenizers' ids."""
    torch = pytest.importorskip("torch")
    import transformers

    assert set(PLAIN) <= set(VOCABULARY)
    rows = run(write_config(tmp_path / "a.yaml", config(material, tmp_path / "online", teachers))).rows
    with (material / "test.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    labels = torch.tensor([row["label"] == "positive" for row in table], dtype=torch.long)
    for row, directory in zip(rows, teachers, strict=False):
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
        inputs = tokenizer([row["sentence"] for row in table], padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            loss = float(theirs(**inputs, labels=labels).loss)
        assert row["eval"]["test"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert len(losses(tmp_path / "online")) == 8
    others = {
        "cached": {"teacher_cache": "memory"},
        "pmap": {"parallel": {"strategy": "pmap", "data": 2}},
        "split": {"parallel": {"data": 2}, "teacher_cache": "disk"},
    }
    for name, changes in others.items():
        made = config(material, tmp_path / name, teachers, **changes)
        if name != "cached":
            made["stages"][0]["train"]["accumulate"] = 2
        run(write_config(tmp_path / f"{name}.yaml", made))
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "online"), rtol=1e-4, err_msg=name)
