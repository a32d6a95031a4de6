"""A stage's batches in the groups that go to the device together."""

from __future__ import annotations

from typing import Any

from jaxdistill.data.stacking import shapes
from jaxdistill.typing import Batch


class Groups:
    """A feed's batches in groups of one shape; its position never counts a batch that has not been given out.

    Args:
      batches: an iterator with `get_state()` and `close()`; a group never reads beyond what it is asked for.
      most: batches of a group at most.
    """

    def __init__(self, batches: Any, *, most: int) -> None:
        self._batches = batches
        self._most = most
        self._held: tuple[Batch, Any] | None = None  # read, but of another shape; and the position before it

    def take(self, limit: int) -> list[Batch]:
        """The next batches of one shape: at least one, at most `limit` (which the feed has, one or more)."""
        group = [next(self._batches) if self._held is None else self._held[0]]
        self._held = None
        shape = shapes(group[0])
        while len(group) < min(limit, self._most):
            position = self._batches.get_state()
            batch = next(self._batches)
            if shapes(batch) != shape:
                self._held = batch, position
                break
            group.append(batch)
        return group

    def get_state(self) -> Any:
        """Of the feed, after the last batch given out."""
        return self._batches.get_state() if self._held is None else self._held[1]

    def close(self) -> None:
        """Close the feed."""
        self._batches.close()
