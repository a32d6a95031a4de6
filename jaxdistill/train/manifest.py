"""What makes a checkpoint trustworthy: its manifest, with the size and SHA-256 of every file Orbax wrote.

The manifest is written last, inside a directory that gets its final name only afterwards: a step that has its name is
whole, unless the disk or a hand changed it since, and then `verify` names the file. SHA-256 is computed as the files
are read back (about a gigabyte a second a core, in the background of the training).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxdistill.atomic import atomic_write_text, json_text

FILE_NAME = "manifest.json"
_FORMAT = 1


class DamagedError(Exception):
    """A checkpoint that cannot be trusted; the text begins with the name of the file at fault."""


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint except its arrays.

    Attributes:
      step: optimizer step.
      files: path below the checkpoint's directory -> [bytes, SHA-256].
      leaves: dotted path of each array -> "dtype[shape]".
      fingerprints: what the training was of; a resume with others is refused.
      metrics: of this step, if it was evaluated.
      best_value: what `best` compares.
      data_state: position of the data iterator.
      extra: the caller's own JSON.
    """

    step: int
    files: dict[str, list[Any]]
    leaves: dict[str, str]
    fingerprints: dict[str, str]
    metrics: dict[str, float | None] | None
    best_value: float | None
    data_state: Any
    extra: Any


def write(directory: Path, manifest: Manifest) -> None:
    """Write `manifest` into the checkpoint's directory, atomically, with a checksum of itself."""
    content = {**asdict(manifest), "format": _FORMAT}
    atomic_write_text(
        directory / FILE_NAME, json_text({"sha256": _own_digest(content), "manifest": content}, indent=1) + "\n"
    )


def read(directory: Path) -> Manifest:
    """The manifest of the checkpoint in `directory`.

    Raises:
      DamagedError: it is missing, torn, changed, or of a newer format.
    """
    path = directory / FILE_NAME
    try:
        outer = json.loads(path.read_bytes())
        content, digest = outer["manifest"], outer["sha256"]
        if digest != _own_digest(content):
            raise DamagedError(f"{path}: its content does not match its checksum")
        if content.pop("format") != _FORMAT:
            raise DamagedError(f"{path}: written by a newer version of jaxdistill")
        return Manifest(**content)
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: not a checkpoint's manifest (truncated or overwritten)") from error


def file_records(directory: Path, *, share: tuple[int, int] = (0, 1)) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file below `directory`, or of part `share[0]` of `share[1]` parts of them."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != FILE_NAME)
    files = files[share[0] :: share[1]]
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, file_digest([path])] for path in files}


def verify(directory: Path, manifest: Manifest, *, share: tuple[int, int] = (0, 1)) -> None:
    """Read every file of a checkpoint, or part `share[0]` of `share[1]` parts of them, and compare with the manifest.

    Raises:
      DamagedError: the first file that is missing, truncated or corrupted.
    """
    for name, (size, digest) in [*manifest.files.items()][share[0] :: share[1]]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"{directory / FILE_NAME}: names a file outside its directory ({name})")
        path = directory / name
        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedError(f"{path}: {'truncated' if found < size else 'too long'}, {found} bytes of {size}")
            if file_digest([path]) != digest:
                raise DamagedError(f"{path}: corrupted, its SHA-256 differs from the manifest's")
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}") from error


def file_digest(paths: Sequence[Path]) -> str:
    """SHA-256 of the content of `paths` one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
    return digest.hexdigest()


def encode_data_state(state: bytes | Mapping[str, Any] | None) -> Any:
    """A Grain iterator's state as JSON.

    Raises:
      TypeError: it would not come back the same.
    """
    if isinstance(state, bytes):
        return {"base64": base64.b64encode(state).decode("ascii")}
    plain = as_json(state)
    if plain != state:
        raise TypeError(f"the data iterator's state does not survive JSON: {state!r}")
    return plain


def decode_data_state(value: Any) -> Any:
    """What `encode_data_state` was given."""
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"])
    return value


def as_json(value: Any) -> Any:
    """A copy of `value` as it comes back from JSON: what the caller changes later is not in it.

    Raises:
      TypeError: it is not JSON.
    """
    return json.loads(json_text(value))


def _own_digest(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content, whatever the order of its keys and the white space."""
    return hashlib.sha256(json.dumps(as_json(content), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
