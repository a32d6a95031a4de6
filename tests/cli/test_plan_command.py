"""`jaxdistill plan`: what it prints, and how it ends when it cannot."""

from __future__ import annotations

import json

import pytest

from jaxdistill.cli import main

CHAIN = """
name: tiny
data: {task: causal_lm, train: {hub: some/text, split: train}, max_length: 32}
stages:
  - name: student
    teacher: {pretrained: some/model}
    student: {architecture: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
              num_key_value_heads: 2, intermediate_size: 32}
    train: {steps: 10, batch_size: 8, warmup: 0}
"""
TEACHER = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "chain.yaml").write_text(CHAIN)
    (tmp_path / "config.json").write_text(json.dumps(TEACHER))
    return [str(tmp_path / "chain.yaml"), "--model-config", f"some/model={tmp_path / 'config.json'}"]


def ends(arguments):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    return ended.value.code


def test_json_on_stdout_and_a_table_beside_it(arguments, capsys, tmp_path):
    assert ends([*arguments, "--target", "cpu", "--json", "--hlo", str(tmp_path / "hlo"), "--price", "1.5"]) == 0
    out, err = capsys.readouterr()
    (stage,) = json.loads(out)["stages"]
    assert stage["fits"]
    assert stage["memory"]["peak"] > stage["memory"]["teacher"] > 0
    assert "compiled for cpu:1 (CPU), not run" in err
    assert (tmp_path / "hlo" / "student.hlo").read_text().startswith("HloModule")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "v5f:4x4"], "error: --target: no device is called 'v5f'"),
        (["--stage", "teacher"], "error: --stage: no stage is named 'teacher'; expected one of student"),
        (["stages.student.train.batch_size=6", "--target", "cpu:8"], "use a multiple of 8"),
    ],
)
def test_the_users_mistakes_are_one_line_and_exit_status_2(arguments, more, said, capsys):
    assert ends([*arguments, *more]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err
    assert err.count("error:") == 1
