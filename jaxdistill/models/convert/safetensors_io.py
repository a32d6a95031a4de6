"""Reading a model directory's safetensors (one file or shards with an index) tensor by tensor, and writing one."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdistill.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (WEIGHTS, INDEX, "model-*-of-*.safetensors")
_CONVERT = (
    'convert it once, where torch is installed and you trust the file: python -c "from transformers import AutoModel; '
    "AutoModel.from_pretrained('DIR').save_pretrained('NEW_DIR')\" (with the Auto class of its task, to keep its "
    "head), and copy its tokenizer's files"
)


class Checkpoint:
    """The tensors of a model directory, read one at a time; nothing that is read is executed.

    Raises (constructor):
        ModelError: no safetensors, a missing or corrupted file, or an index that points outside the directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        if (directory / WEIGHTS).is_file():
            self._where = dict.fromkeys(self._open(WEIGHTS).keys(), WEIGHTS)
        elif (directory / INDEX).is_file():
            self._where = self._read_index()
        else:
            others = sorted(path.name for path in directory.glob("*.bin"))
            found = f"it has only {', '.join(others)}, a pickle, which we never read: " if others else ""
            raise ModelError(f"{directory}: no {WEIGHTS}; {found}{_CONVERT}")

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._open(self._where[name]).get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        try:
            tensor = self._open(self._where[name]).get_tensor(name)
        except (SafetensorError, TypeError) as error:
            raise ModelError(f"{self.directory / self._where[name]}: cannot read tensor {name} ({error})") from None
        if not (np.issubdtype(tensor.dtype, np.floating) or tensor.dtype == ml_dtypes.bfloat16):
            raise ModelError(
                f"{self.directory / self._where[name]}: {name} is {tensor.dtype}; only floating-point weights are read"
            )
        return tensor

    def close(self) -> None:
        """Lets go of the memory maps."""
        self._files.clear()

    def _open(self, filename: str) -> Any:
        if filename not in self._files:
            path = self.directory / filename
            try:
                self._files[filename] = safe_open(path, framework="np")
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path}: not a whole safetensors file ({error}); fetch or export the model again"
                ) from None
        return self._files[filename]

    def _read_index(self) -> dict[str, str]:
        path = self.directory / INDEX
        try:
            where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            where = {str(name): str(filename) for name, filename in where.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: not an index of shards ({type(error).__name__}: {error})") from None
        shards = sorted(set(where.values()))
        outside = [name for name in shards if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:
            raise ModelError(f"{path}: shards must be .safetensors files beside the index, got {', '.join(outside)}")
        missing = [name for name in shards if not (self.directory / name).is_file()]
        if missing:
            raise ModelError(f"{path}: shards not found: {', '.join(missing)}")
        held = {name: set(self._open(name).keys()) for name in shards}
        lost = sorted(name for name, filename in where.items() if name not in held[filename])
        if lost:
            raise ModelError(f"{path}: tensors not in the shard it names: {', '.join(lost)}")
        return where


def write_shards(tensors: Iterable[tuple[str, np.ndarray]], directory: Path, *, max_bytes: int) -> None:
    """Writes model.safetensors, or shards of at most `max_bytes` (or one tensor) with their index.

    Raises:
        OSError: see `write_tensors`.
    """
    where: dict[str, int] = {}
    part: dict[str, np.ndarray] = {}
    shard, size, total = 1, 0, 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > max_bytes:
            write_tensors(part, directory, f"{shard}.part")
            part, shard, size = {}, shard + 1, 0
        part[name], where[name] = tensor, shard
        size, total = size + tensor.nbytes, total + tensor.nbytes
    if shard == 1:
        write_tensors(part, directory)
        return
    write_tensors(part, directory, f"{shard}.part")
    names = {number: f"model-{number:05d}-of-{shard:05d}.safetensors" for number in range(1, shard + 1)}
    for number, name in names.items():
        (directory / f"{number}.part").rename(directory / name)
    weight_map = {name: names[number] for name, number in sorted(where.items())}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors: dict[str, np.ndarray], directory: Path, filename: str = WEIGHTS) -> None:
    """Writes a safetensors file the way transformers marks its own.

    Raises:
        OSError: the disk is full or cannot be written (safetensors' own error holds the number only in its text).
    """
    path = directory / filename
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
    # safetensors makes the file readable by its owner alone, whatever the umask: give it an ordinary file's mode
    ordinary = directory / ".mode"
    ordinary.touch()
    path.chmod(ordinary.stat().st_mode & 0o777)
    ordinary.unlink()
