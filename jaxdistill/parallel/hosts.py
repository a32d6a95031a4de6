"""What the processes of a job do together: the same at the same time, agreeing on how it went.

In a job of one process these are plain calls. In a larger one every process must make them, in the same order, and not
beside a compiled step: they meet on the devices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdistill import errors
from jaxdistill.parallel.distributed import is_lead_host


def on_every_host(action: Callable[[], Any]) -> list[Any]:
    """Run `action` in every process, and return what each of them returned (JSON), by process.

    Raises:
      Exception: what `action` raised here; or, where it did not but in another process it did, an error of the same
        class if it is one of ours, else an `ExternalError`. No process goes on alone.
    """
    if jax.process_count() == 1:
        return [action()]
    result, failure = None, None
    try:
        result = action()
    except Exception as error:  # whatever it is, the other processes wait to be told
        failure = error
    outcomes = exchange(
        {"result": result} if failure is None else {"error": str(failure), "class": type(failure).__name__}
    )
    if failure is not None:
        raise failure
    for process, outcome in enumerate(outcomes):
        if "error" in outcome:
            kind = getattr(errors, outcome["class"], errors.ExternalError)
            raise kind(f"process {process} of {len(outcomes)}: {outcome['error']}")
    return [outcome["result"] for outcome in outcomes]


def on_lead_host(action: Callable[[], Any]) -> Any:
    """Run `action` in the leading process alone, and return what it returned (JSON) in every one.

    Raises:
      Exception: as `on_every_host`.
    """
    return on_every_host(lambda: action() if is_lead_host() else None)[0]


def exchange(value: Any) -> list[Any]:
    """What every process gave, as JSON, by process."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(own.size)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: own.size] = own
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(every, lengths, strict=True)]
