"""The run directory's configuration and records, as a next start finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxdistill.config import run_from_dict
from jaxdistill.errors import CheckpointError, ConfigError, ExternalError
from jaxdistill.run_directory import read_record
from jaxdistill.stages.directory import locked, settle_config, write_record


def run(**keys):
    return run_from_dict(
        {
            "name": "tiny",
            "data": {"train": {"path": "train.csv"}},
            "tokenizer": "owner/name",
            "stages": [{"name": "a", "teacher": None, "student": {"architecture": "bert"}, "train": {"steps": 3}}],
        }
        | keys
    )


def test_a_configuration_may_change_until_a_stage_has_begun(tmp_path: Path) -> None:
    settle_config(run(), tmp_path)
    settle_config(run(seed=1), tmp_path)
    assert "seed: 1" in (tmp_path / "config.yaml").read_text()
    (tmp_path / "stages" / "a").mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        settle_config(run(seed=2, name="other"), tmp_path)
    assert error.value.problems[1:] == ("seed: 1 → 2",)
    settle_config(run(seed=1, name="other"), tmp_path)


def test_a_key_that_the_configuration_did_not_have_yet_is_its_default(tmp_path: Path) -> None:
    (tmp_path / "stages" / "a").mkdir(parents=True)
    settle_config(run(), tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("  shuffle_window: 64\n", ""))
    settle_config(run(), tmp_path)
    assert "shuffle_window: 64" in path.read_text()


@pytest.mark.parametrize("text", ["stages: [1]\n", "a: [", "", "name: x\n"])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "stages" / "a").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        settle_config(run(), tmp_path)
    (line,) = error.value.problems
    assert line.startswith(f"{tmp_path / 'config.yaml'}: not what a run wrote here (")
    assert (tmp_path / "config.yaml").read_text() == text


def test_a_full_disk_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(ExternalError, match=r"cannot write .*\.lock: No space left on device"), locked(tmp_path):
        pass


def test_records(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = {"checkpoint": 3, "identity": "x", "row": {}}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    for damaged in (b"{}", b"[]", b"{", b"\xff"):
        (tmp_path / "stage.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"stage\.json: damaged \(.*\); delete this file"):
            read_record(tmp_path)
