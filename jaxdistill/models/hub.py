"""From what the user wrote (a directory or a hub id) to a local directory."""

from __future__ import annotations

import re
from pathlib import Path

from jaxdistill.errors import ExternalError, ModelError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


def resolve(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The local directory of a model: the path itself, or the hub's snapshot of configuration, weights and tokenizer.

    Raises:
        ModelError: something that can only be a path and is no directory.
        ExternalError: the hub cannot be reached, or does not know the id or revision.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    text = str(path_or_hub_id)
    if path.exists():
        raise ModelError(f"{text}: is a file; expected a directory with config.json and model.safetensors")
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(text) or text.startswith((".", "~")):
        raise ModelError(f"{text}: no such directory; expected one with config.json and model.safetensors, or a hub id")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise ModelError(f"{text}: neither a directory nor a hub id ({error})") from None
    except OSError as error:  # every failure of the hub's client is one: offline, unknown id, gated, disk full
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExternalError(
            f"{text}: no such directory here, and the hub did not give it ({reason}); check the id and the network, "
            "or download it elsewhere and pass its local directory"
        ) from None
