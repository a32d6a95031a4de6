"""What is wrong with a late stage is found before the first one trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_chain import TINY, chain_config, write_config

from jaxdistill.config import build_chain, load_run
from jaxdistill.errors import DataError, ModelError
from jaxdistill.stages.prepare import Preparation


def survey(material: Path, directory: Path, stage: dict[str, Any], **data: Any) -> None:
    """Survey the tiny chain with `stage` as its last one."""
    raw = chain_config(material, directory / "run")
    raw["data"] |= data
    raw["stages"] = [*raw["stages"][:2], {"name": "last", "train": {"steps": 2}, **stage}]
    chain = build_chain(load_run(write_config(directory / "chain.yaml", raw), []))
    Preparation(chain, Console(quiet=True)).survey()


def test_texts_longer_than_a_later_students_positions(material: Path, tmp_path: Path) -> None:
    stage = {"student": {"architecture": "bert", **TINY, "max_position_embeddings": 6}}
    with pytest.raises(DataError, match=r"train\.csv: \d+ bad rows.*more than 6 tokens"):
        survey(material, tmp_path, stage, max_length=None)


def test_a_pretrained_student_with_other_classes(material: Path, finished: Path, tmp_path: Path) -> None:
    stage = {"student": {"pretrained": str(finished / "stages" / "assistant" / "student")}}
    message = "stages.last.student: its classifier has 2 classes, the data has 3 (negative, positive, other)"
    with pytest.raises(ModelError, match=re.escape(message)):
        survey(
            material, tmp_path, stage | {"teacher": None, "data": {"label_names": ["negative", "positive", "other"]}}
        )
