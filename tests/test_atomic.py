"""A write is there or it is not, and a failing disk is said in one line."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import atomic
from jaxdistill.errors import ExternalError


def test_writes_create_directories_and_replace(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    atomic.atomic_write_text(path, "first")
    atomic.atomic_write_bytes(path, "zweite Fassung: é".encode())
    assert path.read_text(encoding="utf-8") == "zweite Fassung: é"
    assert list(path.parent.iterdir()) == [path]


def test_json_is_readable_by_every_parser(tmp_path: Path):
    value = {"nan": math.nan, "inf": [np.float32("inf"), -math.inf], "f": np.float64(0.5), "i": np.int64(3)}
    value |= {"jax": jnp.float32(0.25), "tuple": (1, None, True), "text": "é"}
    atomic.atomic_write_json(tmp_path / "x.json", value)
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    expected = {"nan": None, "inf": [None, None], "f": 0.5, "i": 3, "jax": 0.25, "tuple": [1, None, True], "text": "é"}
    assert found == expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "x.json"
    atomic.atomic_write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        atomic.atomic_write_json(path, {"new": object()})
    (tmp_path / "directory").mkdir()
    with pytest.raises(ExternalError, match="cannot write"):
        atomic.atomic_write_text(tmp_path / "directory", "text")
    assert json.loads(path.read_text()) == {"old": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "x.json"]


def test_a_file_where_a_directory_is_needed(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExternalError, match="something else stands in its place") as caught:
        atomic.atomic_write_text(tmp_path / "file" / "x.json", "{}")
    assert str(tmp_path / "file" / "x.json") in str(caught.value)
    assert caught.value.exit_status == 4


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "make it writable"), (errno.EIO, "check the disk")],
)
def test_each_kind_of_failure_says_what_to_do(number: int, advice: str):
    with pytest.raises(ExternalError, match=advice) as caught, atomic.disk_errors("runs/x", doing="save"):
        raise OSError(number, "reason", "runs/x/part")
    assert str(caught.value).startswith("cannot save runs/x: ")
    assert "\n" not in str(caught.value)


def test_a_new_directory_takes_the_old_ones_place_as_a_whole(tmp_path: Path):
    target = tmp_path / "student"
    for content in ("first", "second"):
        with atomic.new_directory(target) as directory:
            (directory / "nested").mkdir()
            (directory / "nested" / content).write_text(content)
            assert not (target / "nested" / content).exists()
        assert [path.name for path in (target / "nested").iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_that_fails_half_way_changes_nothing(tmp_path: Path):
    target = tmp_path / "student"
    with atomic.new_directory(target) as directory:
        (directory / "old").touch()
    with pytest.raises(KeyError), atomic.new_directory(target) as directory:  # noqa: PT012
        (directory / "new").touch()
        raise KeyError
    with pytest.raises(ExternalError, match="No space left"), atomic.new_directory(target) as directory:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path):
    (tmp_path / ".x.json.1-2.tmp").touch()
    (tmp_path / ".student.1-2.tmp").mkdir()
    (tmp_path / "kept.tmp").touch()
    atomic.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.tmp"]
