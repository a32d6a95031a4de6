"""Every configuration that ships loads and resolves, without a network."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdistill.config import build_chain, load_run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def overrides(path: Path, tmp_path: Path) -> list[str]:
    """Stand-ins for the local files that a configuration expects the user to bring."""
    if path.stem == "ner":
        (tmp_path / "made.txt").write_text("Ann\tB-PER\nlaughs\tO\n")
        (tmp_path / "test.txt").write_text("Bob\tB-PER\n")
        files = {"train": "made", "validation": "made", "test": "test"}
        return [f"data.{split}.path={tmp_path}/{name}.txt" for split, name in files.items()]
    if path.stem == "mlm_finetune":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        return [f"stages.{place}.student.pretrained={tmp_path}" for place in (0, 1)]
    if path.stem not in ("sst2_minilm", "presets", "half_depth", "two_teachers"):
        return []
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\nfine\t1\n")
    return [f"data.train.path={tmp_path}/train.tsv", f"data.test.path={tmp_path}/dev.tsv"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_loads_and_chains(path, tmp_path):
    run = load_run(path, overrides(path, tmp_path))
    assert run.name == path.stem
    assert path.read_text().startswith(f"# jaxdistill run configs/{path.name}      (")
    made = build_chain(run)
    # Checkpoints are never chosen on what is reported.
    assert all(stage.data.test is not None and stage.data.test != stage.data.validation for stage in made.stages)


def test_the_published_chain():
    chain = build_chain(load_run(next(path for path in CONFIGS if path.stem == "sst2_progressive")))
    assert [given.label for given in chain.given] == ["assemblyai/bert-large-uncased-sst2"]
    assert {stage.key: [teacher.label for teacher in stage.teachers] for stage in chain.stages} == {
        "mini": ["assemblyai/bert-large-uncased-sst2"],
        "tiny": ["mini"],
        "femto": ["tiny"],
        "femto_direct": ["assemblyai/bert-large-uncased-sst2"],
        "femto_labels": [],
    }
    rates = [(s.config.train.learning_rate, s.config.train.epochs, s.config.train.batch_size) for s in chain.stages]
    assert rates == [(1e-4, 5, 32), (1e-4, 5, 32), (3e-4, 5, 32), (3e-4, 5, 32), (3e-4, 5, 32)]
    assert all(stage.data.max_length == 128 for stage in chain.stages)


@pytest.mark.parametrize("name", ["quickstart", "sst2_minilm"])
def test_controls_train_the_same_student(name, tmp_path):
    path = next(path for path in CONFIGS if path.stem == name)
    chain = build_chain(load_run(path, overrides(path, tmp_path)))
    student, controls = (
        ("student", ["direct", "scratch"]) if name == "quickstart" else ("femto", ["femto_direct", "femto_scratch"])
    )
    by_name = {stage.name: stage for stage in chain.stages}
    for control in controls:
        assert by_name[control].config.student == by_name[student].config.student
        assert by_name[control].config.train == by_name[student].config.train
        assert by_name[control].warm_start_teacher == by_name[student].warm_start_teacher


def test_students_of_masked_text_are_one_student(tmp_path):
    chains = {
        path.stem: {stage.name: stage for stage in build_chain(load_run(path, overrides(path, tmp_path))).stages}
        for path in CONFIGS
        if path.stem.startswith("mlm_")
    }
    general, tuned = chains["mlm_distil"], chains["mlm_finetune"]
    assert general["student"].config.student == general["alone"].config.student
    assert general["student"].config.train == general["alone"].config.train
    shapes = [
        dataclasses.replace(stage.config.student, warm_start=None) for stage in (general["student"], tuned["without"])
    ]
    assert shapes[0] == shapes[1]
    assert len({stage.config.train for stage in tuned.values()}) == 1


def test_loading_a_configuration_imports_no_jax():
    path = next(path for path in CONFIGS if path.stem == "quickstart")
    code = (
        f"import sys; from jaxdistill.config import load_run, build_chain; build_chain(load_run({str(path)!r})); "
        "print([name for name in ('jax', 'flax', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
