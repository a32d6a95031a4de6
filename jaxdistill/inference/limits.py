"""How long a text a loaded model may be given."""

from __future__ import annotations

from pathlib import Path

from jaxdistill.errors import ModelError


def allowed_length(max_length: int | None, *, positions: int, source: str | Path) -> int:
    """What was asked for, else all of the model's positions.

    Raises:
      ModelError: more than those.
    """
    if max_length is not None and max_length > positions:
        raise ModelError(
            f"max_length is {max_length}, but {source} has {positions} positions; give {positions} or less"
        )
    return max_length or positions
