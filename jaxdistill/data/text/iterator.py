"""The training batches' iterator: as many as the run has steps, with a state that is plain JSON."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from jaxdistill.errors import CheckpointError, DataError

_TUPLE = "tuple"


class TrainIterator(grain.DatasetIterator):
    """`steps` batches of a pipeline that may have fewer, which is an error only when they are asked for.

    Args:
      batches: of the pipeline. They are read ahead.
      steps: of the run.
      layout: what a state depends on besides the run's own settings.
      name: of the data in messages.
      filler: what follows the last batch, where other processes are known to have rows still; None: an error.
    """

    def __init__(
        self,
        batches: grain.IterDataset,
        *,
        steps: int,
        layout: Mapping[str, Any],
        name: str,
        filler: Mapping[str, np.ndarray] | None,
    ) -> None:
        super().__init__()
        # Held where it can be let go of at exit: threads and processes that read ahead are to end before the
        # interpreter takes their modules apart.
        self._held = [iter(batches)]
        self._finalizer = weakref.finalize(self, _close_all, self._held)
        self._steps, self._layout, self._name, self._filler = steps, dict(layout), name, filler
        self._step = 0

    def __next__(self) -> dict[str, Any]:
        self._assert_not_closed()
        if self._step == self._steps:
            raise StopIteration
        try:
            batch = next(self._held[0])
        except StopIteration:
            if self._filler is None:
                raise DataError(
                    f"{self._name}: the data is used up after {self._step} steps of {self._steps}; set "
                    f"data.repeat=true or train.steps={self._step}, or give more data"
                ) from None
            batch = dict(self._filler)
        self._step += 1
        return batch

    def close(self) -> None:
        """Ends the threads and processes that read ahead; nothing can be read afterwards."""
        self._closed = True
        self._finalizer()

    def get_state(self) -> dict[str, Any]:
        """The position as a small dictionary that is equal to itself read back from JSON."""
        return {"step": self._step, "layout": self._layout, "position": _to_json(self._held[0].get_state())}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where another iterator of the same split and layout was: the same batches follow.

        Raises:
          CheckpointError: the state is of another layout.
        """
        if state["layout"] != self._layout:
            then, now = state["layout"], self._layout
            changed = [f"{key} {then.get(key)} → {now.get(key)}" for key in now if then.get(key) != now.get(key)]
            raise CheckpointError(
                f"{self._name}: the position in the data cannot be kept over a change of {', '.join(changed)}; give "
                "back what the stage was begun with"
            )
        self._step = state["step"]
        self._held[0].set_state(_from_json(state["position"]))


def _close_all(held: list[grain.DatasetIterator]) -> None:
    while held:
        held.pop().close()


def _to_json(value: Any) -> Any:
    """Grain compares some tuples of its states with tuples, which JSON would give back as lists."""
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return value if value is None or isinstance(value, str | bool | float) else int(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {_TUPLE}:
            return tuple(_from_json(item) for item in value[_TUPLE])
        return {key: _from_json(item) for key, item in value.items()}
    return [_from_json(item) for item in value] if isinstance(value, list) else value
