"""Curves for TensorBoard, each row in the file when `write` returns.

tensorboardX's own writer queues its events for a thread: that thread dies on a full disk, and the training then hangs
at the queue; after a kill up to two minutes of curves are missing. Here are its messages and checksums, written at
once and without its fsync, for which the training would wait.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill import atomic


class EventFile:
    """One file of scalars in TensorBoard's format.

    Args:
      directory: created if missing; files of earlier starts stay.
      resume_step: TensorBoard is told to forget what those files hold after this step.

    Raises:
      ExternalError: the directory cannot be written.
    """

    def __init__(self, directory: Path, *, resume_step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._path = directory / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        with atomic.disk_errors(self._path, doing="write"):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append scalars of one step.

        Raises:
          ExternalError: the disk is full.
        """
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: Any) -> None:
        """One TFRecord: length, its checksum, content, its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        with atomic.disk_errors(self._path, doing="write"):
            atomic.append(self._file, length + checksums[0] + content + checksums[1])
