"""How many tokens each document has: counted by tokenising all of them once, and kept on disk."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from jaxdistill.data.cache import default_cache_dir, new_directory
from jaxdistill.data.text.encode import Encoder
from jaxdistill.data.text.store import StoredDocuments

_VERSION = 1
_CHUNK = 1024
_log = logging.getLogger(__name__)


def token_counts(
    documents: StoredDocuments, encoder: Encoder, *, key: str, cache_dir: Path | None = None
) -> np.ndarray:
    """int32 [N] tokens of each document.

    Args:
      documents: N of them.
      encoder: to tokens.
      key: fingerprint of both.
      cache_dir: where the numbers are kept (default: the user's cache).
    """
    directory = (cache_dir or default_cache_dir()) / "token-counts" / f"v{_VERSION}-{key[:40]}"
    file = directory / "counts.npy"
    if directory.exists():
        try:
            counts = np.load(file, allow_pickle=False)
            if counts.shape == (len(documents),):
                return counts
            _log.warning("%s has another number of documents; counting anew", file)
        except (OSError, ValueError) as error:
            _log.warning("%s is damaged (%s); counting anew", file, error)
    chunks = (range(start, min(start + _CHUNK, len(documents))) for start in range(0, len(documents), _CHUNK))
    blocks = [np.diff(encoder([documents[place] for place in chunk])["offsets"]) for chunk in chunks]
    counts = np.concatenate(blocks).astype(np.int32)
    try:
        with new_directory(directory) as work:
            np.save(work / file.name, counts, allow_pickle=False)
    except OSError as error:
        _log.warning("%s cannot be written (%s)", file, error)
    return counts
