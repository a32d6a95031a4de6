"""A stage whose teacher is kept in 8 bits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from test_stored_logits import config, write_teacher
from tiny_chain import run, write_config

from jaxdistill.errors import ModelError

pytest.importorskip("qwix")


@pytest.mark.slow
def test_its_drift_is_printed_and_bounded(material: Path, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", 0, initializer_range=0.3)
    raw = config(material, tmp_path / "run", teacher)
    raw["stages"][0]["train"] = {**raw["stages"][0]["train"], "epochs": None, "steps": 2}
    del raw["stages"][0]["train"]["epochs"]
    path = write_config(tmp_path / "c.yaml", raw)
    with pytest.raises(ModelError, match=r"int8 weights.*mean KL .* more than precision.max_drift=1e-12"):
        run(path, "precision.teacher=int8", "precision.max_drift=1.0e-12")
    said = io.StringIO()
    run(path, "precision.teacher=int8", console=Console(file=said, width=300))
    assert "int8 weights, mean KL" in said.getvalue()
