"""`jaxdistill bench`: what is in its JSON agrees with itself, and its figures reach summary and report; no time is."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest
import yaml
from tiny_classifier import BAD, GOOD
from tiny_language_model import write_language_model

from jaxdistill.bench.spread import ratio, spread

RATES = [
    "examples_per_second",
    "examples_per_cpu_second",
    "tokens_per_second",
    "tokens_per_cpu_second",
    "padded_tokens_per_second",
    "step_seconds",
    "step_cpu_seconds",
]
ONCE = ("--repeats", "2", "--steps", "2", "--json")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> Path:
    """A configuration of one stage: a smaller student of the tiny classifier."""
    directory = tmp_path_factory.mktemp("bench")
    rows = [f"{word} film,{label}" for label, words in (("positive", GOOD), ("negative", BAD)) for word in words * 4]
    (directory / "d.csv").write_text("\n".join(["text,label", *rows, "a very very very good film,positive"]) + "\n")
    source = {"path": str(directory / "d.csv")}
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    content = {
        "name": "bench",
        "output_dir": str(directory / "run"),
        "data": {"train": source, "validation": source, "max_length": 16},
        "logging": {"tensorboard": False},
        "parallel": {"data": 1},
        "stages": [
            {
                "name": "small",
                "teacher": {"pretrained": str(classifier)},
                "student": {"architecture": "bert", **shape},
                "train": {"steps": 4, "batch_size": 8},
                "evaluate": {"batch_size": 16},
            }
        ],
    }
    (directory / "bench.yaml").write_text(yaml.safe_dump(content))
    return directory / "bench.yaml"


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """The run directory of that configuration, trained."""
    from jaxdistill.cli import main

    with pytest.raises(SystemExit) as exit_:
        main(["run", str(config), "--quiet"])
    assert exit_.value.code == 0
    return config.parent / "run"


def test_a_ratio_is_the_quotient_of_medians_between_those_of_the_rounds():
    found = ratio([1.0, 6.0, 3.0], [2.0, 3.0, 4.0])
    assert found == {"ratio": 1.0, "min": 0.5, "max": 2.0}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


@pytest.mark.slow
def test_a_stage_is_taken_apart(jaxdistill, config, tmp_path):
    written = tmp_path / "bench.json"
    result = jaxdistill("bench", config, "output_dir=" + str(tmp_path / "run"), *ONCE, "--output", written)
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert json.loads(written.read_text()) == found
    assert xml.etree.ElementTree.parse(tmp_path / "bench.svg").getroot().tag.endswith("svg")
    assert not (tmp_path / "run").exists()
    assert found["process_peak_bytes"] > 0
    (stage,) = found["stages"]
    (row,) = stage["variants"]
    assert (stage["stage"], stage["steps"], row["variant"]) == ("small", 2, "as configured")
    assert 0 < row["tokens"] <= row["padded_tokens"]
    assert row["real_token_share"] == row["tokens"] / row["padded_tokens"]
    assert row["flops"]["student"] > 0
    assert row["flops"]["teachers"] > 0
    assert row["flops"]["step"] == row["flops"]["student"] + row["flops"]["teachers"]
    assert row["planned_bytes"]["peak"] >= row["planned_bytes"]["temporaries"]
    assert set(row["compile_seconds"]) == {"cold", "cached"}
    for name in RATES:
        assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
        assert row["against_first"][name]["ratio"] == 1.0
    assert row["share_of_matmul_peak"]["median"] == pytest.approx(
        row["flops_per_second"]["median"] / row["matmul_peak_flops_per_second"]
    )
    parts = row["parts"]
    over = parts["distillation_over_plain"]["ratio"]
    assert over == pytest.approx(row["step_seconds"]["median"] / parts["plain_step_seconds"]["median"])
    share = parts["teacher_share"]["ratio"]
    assert share == pytest.approx(parts["teacher_step_seconds"]["median"] / row["step_seconds"]["median"])
    assert "teachers' forward passes" in result.err


@pytest.mark.slow
def test_a_sweep_is_timed_with_all_its_students(jaxdistill, config):
    swept = "stages.small.sweep.seed=[1,2,3]"
    result = jaxdistill("bench", config, "data.batching=padded", "--compare", swept, *ONCE)
    assert result.status == 0, result.err
    alone, together = json.loads(result.out)["stages"][0]["variants"]
    assert (alone["students"], together["students"]) == (1, 3)
    assert "students" in result.err
    # a batch's examples count once, and the teacher runs once
    assert together["tokens"] == alone["tokens"]
    work = [row["flops"]["step"] for row in (alone, together)]
    for name in ("min", "max"):  # of every turn, 8 examples a step
        other = {"min": "max", "max": "min"}[name]
        assert together["examples_per_second"][name] * together["step_seconds"][other] == pytest.approx(8)
    assert work[0] < work[1] < 3 * work[0]


@pytest.mark.slow
@pytest.mark.long
def test_variants_take_turns_and_are_compared_with_the_first(jaxdistill, config):
    variant = "data.batching=padded stages.small.train.remat=full"
    result = jaxdistill("bench", config, "--stage", "small", "--compare", variant, *ONCE)
    assert result.status == 0, result.err
    (stage,) = json.loads(result.out)["stages"]
    first, second = stage["variants"]
    assert [first["variant"], second["variant"]] == ["as configured", variant]
    assert second["overrides"] == variant.split()
    assert first["parts"] is None
    for name in RATES:
        compared = second["against_first"][name]
        assert compared["ratio"] == pytest.approx(second[name]["median"] / first[name]["median"])
        assert compared["min"] <= compared["ratio"] <= compared["max"]
    longest = 8 * 2  # what a row of either is padded to at least: the examples are those of the same two batches
    assert second["padded_tokens"] >= longest
    # what is computed again is no work done
    per_place = [row["flops"]["step"] * 4 / row["padded_tokens"] for row in (first, second)]
    assert per_place[1] == pytest.approx(per_place[0], rel=0.3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "large"], "no stage large; this configuration has small"),
        (["--compare", "data.batching=sorted"], "--compare 'data.batching=sorted': data.batching"),
        (["--compare", "'data.batching=padded"], "No closing quotation"),
        (["--output", "figures.csv"], "ends in .json"),
        (["--cpus", "0,x"], "--cpus"),
        (["--cpus", "99999"], "no such processor"),
        (["--lengths", "8"], "--lengths means nothing"),
        (["--inference", "--stage", "small"], "--stage means nothing"),
        (["--inference", "--batch-sizes", "0,x"], "--batch-sizes: '0,x'"),
        (["nonsense"], "nonsense"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(jaxdistill, config, arguments, said):
    result = jaxdistill("bench", config, *arguments)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.slow
def test_inference_of_a_run_is_written_into_it(jaxdistill, config, finished):
    shapes = ("--batch-sizes", "1,4", "--lengths", "8", "--calls", "2", "--repeats", "2")
    result = jaxdistill("bench", "--inference", finished, *shapes, "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    teacher, student = found["models"]
    assert student["name"] == "small"
    assert student["bytes"] == (finished / "stages/small/student/model.safetensors").stat().st_size
    assert [(cell["batch"], cell["length"]) for cell in student["cells"]] == [(1, 8), (4, 8)]
    for ours, theirs in zip(student["cells"], teacher["cells"], strict=True):
        quotient = ours["examples_per_second"]["median"] / theirs["examples_per_second"]["median"]
        assert ours["faster_than_first"]["ratio"] == pytest.approx(quotient)
        assert theirs["faster_than_first"]["ratio"] == 1.0
        assert 0 < ours["p50_ms"] <= ours["p95_ms"]
        assert ours["tokens_per_second"]["median"] == pytest.approx(8 * ours["examples_per_second"]["median"])
    # a run that goes on, or is started again, keeps the figures
    assert jaxdistill("run", config, "--quiet").status == 0
    rows = json.loads((finished / "summary.json").read_text())["stages"]
    assert [row["parameters"] for row in rows] == [teacher["parameters"], student["parameters"]]
    assert [row["inference"]["cells"] for row in rows] == [teacher["cells"], student["cells"]]
    shown = jaxdistill("report", finished)
    assert shown.status == 0
    assert "Inference" in shown.out
    assert "4 × 8" in shown.out
    assert "<h3>Inference</h3>" in (finished / "report.html").read_text()


def test_language_models_are_timed_by_tokens_and_apart(jaxdistill, classifier, tmp_path):
    model = write_language_model(tmp_path / "lm")
    once = ("--batch-sizes", "2", "--lengths", "8", "--calls", "1", "--repeats", "1")
    result = jaxdistill("bench", "--inference", model, *once)
    assert result.status == 0, result.err
    assert "tokens/s" in result.out
    assert jaxdistill("bench", "--inference", model, classifier, *once).status == 2
    too_long = jaxdistill("bench", "--inference", model, "--lengths", "65")
    assert (too_long.status, too_long.err.count("\n")) == (2, 1)
    assert "64 positions" in too_long.err


@pytest.mark.slow
@pytest.mark.long
def test_a_second_start_finds_its_programs(jaxdistill, config):
    result = jaxdistill("bench", config, *ONCE, "--restart")
    assert result.status == 0, result.err
    starts = json.loads(result.out)["stages"][0]["variants"][0]["first_step_seconds"]
    assert starts["ratio"] == starts["second"] / starts["first"]
