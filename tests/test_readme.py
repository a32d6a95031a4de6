"""What README.md shows works: its Python is run, its YAML is loaded, its commands are parsed, as they stand there."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxdistill import models
from jaxdistill.config import build_chain, load_run, run_from_dict

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "the"]
ROWS = [("the good film", "good"), ("the bad film", "bad")] * 20


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def put(text: str, **replacements: Any) -> str:
    """The text with each of `replacements` (written → put in its place), every one of which must be there."""
    for written, instead in replacements.items():
        assert written in text, f"{written!r} is not in the README any more"
        text = text.replace(written, str(instead))
    return text


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv, test.csv, and `model`: a tiny classifier with its tokenizer."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("readme")
    for name in ("train.csv", "test.csv"):
        with (directory / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("sentence", "label"), *ROWS])
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    shape = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "bert", **shape, "intermediate_size": 32, "max_position_embeddings": 128}
    model = models.build(config, num_labels=2)
    models.save_pretrained(model, jax.jit(model.init)(jax.random.key(0)), directory / "model", tokenizer=wrapped)
    return directory


def test_an_exported_student_loads_in_transformers(material: Path):
    pytest.importorskip("torch")
    exported, _, _ = blocks("python")
    names: dict[str, Any] = {}
    exec(put(exported, **{"runs/reviews/stages/assistant/student": material / "model"}), names)
    assert names["model"].config.num_labels == 2


def layers_of(key, *sizes):
    pairs = itertools.pairwise(sizes)
    return [
        (jax.random.normal(jax.random.fold_in(key, n), pair) / pair[0] ** 0.5, jnp.zeros(pair[1]))
        for n, pair in enumerate(pairs)
    ]


def test_the_losses_teach_anybodys_model():
    """The student comes to agree with its teacher; its gradient is the same by every way of spreading the batch."""
    _, example, _ = blocks("python")
    names: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):  # as anybody writes x @ w + b
        exec(example, names)
        mlp, step, loss = names["mlp"], names["step"], names["loss"]
        teacher, student = layers_of(jax.random.key(0), 6, 16, 4), layers_of(jax.random.key(1), 6, 8, 4)
        x = jax.random.normal(jax.random.key(2), (64, 6))
        labels = jnp.argmax(mlp(teacher, x), -1).at[:8].set(-100)

        def agreement():
            return float(jnp.mean(jnp.argmax(mlp(student, x), -1) == jnp.argmax(mlp(teacher, x), -1)))

        before, values = agreement(), []
        for _ in range(200):
            student, value = step(student, teacher, x, labels)
            values.append(float(value))
        assert values[-1] < values[0] / 4
        assert agreement() > before + 0.3

        whole = jax.jit(jax.grad(loss))(student, teacher, x, labels)
        parts = [array.reshape(8, 8, *array.shape[1:]) for array in (x, labels)]

        def averaged(x, labels):
            return jax.lax.pmean(jax.grad(loss)(student, teacher, x, labels, "data"), "data")

        mesh, own, everywhere = Mesh(np.array(jax.devices()), ("data",)), P("data"), P()
        spread = jax.shard_map(
            lambda *arguments: jax.grad(loss)(*arguments, "data"),
            mesh=mesh,
            in_specs=(everywhere, everywhere, own, own),
            out_specs=everywhere,
        )
        found = [
            jax.tree.map(lambda each: each[0], jax.pmap(averaged, axis_name="data")(*parts)),
            jax.tree.map(lambda each: each[3], jax.vmap(averaged, axis_name="data")(*parts)),
            jax.jit(spread)(student, teacher, x, labels),
        ]
        for gradient in found:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, whole)


def test_the_library_example_runs(material: Path):
    """On few steps and a narrow student; the names that its first half takes as given are given here."""
    _, _, example = blocks("python")
    code = put(
        example,
        **{
            "runs/reviews/stages/teacher/student": material / "model",
            "train.csv": material / "train.csv",
            "batch_size=32": "batch_size=8",
            "steps=1000": "steps=12",
            ", 1000)": ", 12)",
            '"hidden_size": 128': '"hidden_size": 16',
            '"intermediate_size": 512': '"intermediate_size": 32',
        },
    )
    rng = np.random.default_rng(0)
    student, teacher = (jax.numpy.asarray(rng.normal(size=(2, 3, 5)), "float32") for _ in range(2))
    mask = jax.numpy.asarray([[True, True, False], [True, False, False]])
    names: dict[str, Any] = {"student_logits": student, "teacher_logits": teacher, "mask": mask}
    exec(code, names)
    assert names["kl"].shape == mask.shape
    assert float(names["loss"]) == pytest.approx(float(names["kl"][mask].mean()), rel=1e-6)
    assert int(names["state"].step) == 12
    total, count = names["metrics"]["kd"]
    assert 0 <= float(total / count) < np.inf
    assert names["step"].trace_count <= 2


def test_the_configuration_loads(material: Path, tmp_path: Path):
    text, *_ = blocks("yaml")
    text = put(text, **{"train.csv": material / "train.csv", "test.csv": material / "test.csv"})
    path = tmp_path / "chain.yaml"
    path.write_text(put(text, **{"./small-bert": material / "model"}), encoding="utf-8")
    chain = build_chain(load_run(path))
    assert [stage.key for stage in chain.stages] == [
        *("teacher", "assistant", "student/seed-0", "student/seed-1", "student/seed-2", "direct")
    ]
    assert yaml.safe_load(text)["name"] == chain.run.name


def test_the_configuration_of_language_models_loads(tmp_path: Path):
    _, text, *_ = blocks("yaml")
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32000}
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama", **shape}), encoding="utf-8")
    (tmp_path / "books.jsonl").write_text('{"text": "once"}\n', encoding="utf-8")
    text = put(text, **{"./llama-7b": tmp_path / "llama", "books.jsonl": tmp_path / "books.jsonl"})
    (tmp_path / "llama.yaml").write_text(text, encoding="utf-8")
    chain = build_chain(load_run(tmp_path / "llama.yaml", ["parallel.fsdp=8"]))
    assert [stage.key for stage in chain.stages] == ["student-1", "student-2", "student"]


@pytest.fixture
def stage() -> dict[str, Any]:
    """A stage that parts of others are shown for."""
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    student = {"name": "student", "student": {"architecture": "bert", **shape}, "train": {"steps": 10}}
    return {**student, "teacher": {"asset": "minilm-l6"}}


def chain_of(stage: dict[str, Any], text: str) -> Any:
    """The stage's chain with the keys of a YAML text."""
    data = {"train": {"asset": "sentiment", "split": "train"}}
    return build_chain(run_from_dict({"name": "one", "data": data, "stages": [{**stage, **yaml.safe_load(text)}]}))


def test_the_loss_of_phases_loads(stage):
    _, _, text, _ = blocks("yaml")
    chain = chain_of(stage, text)
    assert [(stage.key, stage.config.train.steps) for stage in chain.stages] == [("student.between", 6), ("student", 4)]


def test_the_search_loads(stage):
    _, _, _, text = blocks("yaml")
    (search,) = [each.search for each in chain_of(stage, text).stages]
    assert [len(round_) for round_ in search.rounds] == [4] * 6
    assert set(search.space) == {"learning_rate", "kd_weight"}


def commands() -> list[list[str]]:
    """The arguments of every `jaxdistill` on a command line of the README, in blocks and in the text."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`(jaxdistill [a-z]+ [^`]+)`", README)
    lines += re.findall(r"^# (jaxdistill .*)$", README, flags=re.MULTILINE)
    found = []
    for line in lines:
        for part in re.split(r"&&|\|", line):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "jaxdistill":
                found.append(words[1:])
    return found


def test_every_command_is_one():
    import typer

    from jaxdistill.cli.app import app

    group = typer.main.get_command(app)
    used = set()
    for arguments in commands():
        # CONFIG.yaml stands for any file; nothing is looked up while the arguments are parsed
        context = group.make_context("jaxdistill", list(arguments))
        name, command, rest = group.resolve_command(context, arguments)  # type: ignore[attr-defined]
        command.make_context(name, rest, parent=context)
        used.add(name)
    assert used >= {"run", "evaluate", "predict", "export", "report"}


def test_every_directory_it_names_is_in_the_repository():
    for path in set(re.findall(r"\b(?:configs|scripts)/[\w.-]+", README)):
        assert (Path(__file__).parents[1] / path).exists(), path
