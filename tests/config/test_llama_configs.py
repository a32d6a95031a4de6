"""The configurations of language models: each loads, and its students have the sizes that its comments say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxdistill import models
from jaxdistill.config import build_chain, load_run
from jaxdistill.config.chain import Chain
from jaxdistill.config.numbers import readable
from jaxdistill.distill.warm_start import check_warm_start

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "llama").glob("*.yaml"))
LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_theta": 100000,
}
SIZES = {
    "7b_3b_1b5": {"assistant": 2_973_309_504, "student": 1_494_898_496, "direct": 1_494_898_496},
    "article_1b5": {"student": 702_359_040},
    "article_balanced": {"student": 1_547_814_912},
    "article_tiny": {"student": 124_668_672},
    "quality": {"student-1": 4_097_846_400, "student-2": 2_476_829_056, "student": 1_494_898_496},
    "resource_constrained": {"student": 716_391_680},
    "smollm2_smoke": {"assistant": 81_413_568, "student": 49_552_704, "direct": 49_552_704},
    "speed": {"student": 1_432_701_440},
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What smollm2_smoke.yaml is told the places of: a teacher's config.json, and text."""
    directory = tmp_path_factory.mktemp("smollm2")
    (directory / "config.json").write_text(json.dumps(SMOLLM2_135M))
    (directory / "text.txt").write_text("some text\n")
    return directory


def chain(path: Path, stand_ins: Path) -> Chain:
    overrides = []
    if path.stem == "smollm2_smoke":
        overrides = [f"stages.{name}.teacher.pretrained={stand_ins}" for name in ("assistant", "direct")]
        overrides += [f"data.{split}.path={stand_ins / 'text.txt'}" for split in ("train", "test")]
    return build_chain(load_run(path, overrides))


def students(made: Chain) -> dict[str, tuple[models.LlamaConfig, models.LlamaConfig]]:
    """(the student's configuration, its teacher's) by stage, from the given teachers' config.json alone."""
    found: dict[str, tuple[Any, Any]] = {}
    for stage in made.stages:
        given = SMOLLM2_135M if made.run.name == "smollm2_smoke" else LLAMA_2_7B
        reference = stage.teachers[0]
        teacher = found[reference.stage][0] if reference.stage else models.config_from_hf(given)
        found[stage.key] = models.student_config(stage.config.student, teacher=teacher), teacher
    return found


def test_every_configuration_is_looked_at():
    assert {path.stem for path in CONFIGS} == SIZES.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_sizes_and_starts(path, stand_ins):
    made = chain(path, stand_ins)
    assert path.read_text().startswith(f"# jaxdistill run configs/llama/{path.name}      (")
    found = students(made)
    counts = {}
    for key, (student, teacher) in found.items():
        start = made.stage(key).config.student.warm_start
        if start is not None:
            check_warm_start(student, teacher, start)
        models.build(student, task="causal_lm", remat=made.stage(key).config.train.remat)
        counts[key] = models.decoder_parameters(student)
        assert (student.vocab_size, student.rope) == (teacher.vocab_size, teacher.rope)
        limit = made.stage(key).data.max_length
        assert limit is not None
        assert limit <= models.positions(student)
        assert student.num_key_value_heads % made.run.parallel.tensor == 0
    assert counts == SIZES[path.stem]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_comments_say_the_sizes_that_come_out(path):
    """At the precision they say them with: 702,359,040 as 0.70B or 702M."""
    comments = " ".join(line for line in path.read_text().splitlines() if "#" in line)
    said = {float(number) * {"M": 1e6, "B": 1e9}[unit] for number, unit in re.findall(r"([\d.]+)([MB])\b", comments)}
    for count in SIZES[path.stem].values():
        assert any(abs(count / number - 1) < 0.02 for number in said if number), (readable(count), said)


def test_controls_have_their_rivals_shape(stand_ins):
    for name in ("7b_3b_1b5", "smollm2_smoke"):
        found = students(chain(CONFIGS[0].with_name(f"{name}.yaml"), stand_ins))
        assert found["direct"][0] == found["student"][0]
