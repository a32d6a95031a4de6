"""Host memory: keep what a step frees for the next one, and give it back when there is no next one."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library (glibc) to reuse freed memory instead of returning it to the system; true if it will.

    XLA's CPU client allocates a program's temporary memory anew for every execution. glibc gives such large blocks back
    to the system each time, and the kernel clears each of their pages again in the next step: a tenth or more of the
    time of a small student's step. The price is that the process keeps its peak memory, and somewhat more, until it
    ends. One arena, because a second one cannot grow beyond 64 MB and would return larger blocks all the same.

    Call it before NumPy or JAX is imported, whose threads bring arenas of their own. It does nothing outside Linux with
    glibc, or where the user has set glibc's own variables (`MALLOC_ARENA_MAX`, `GLIBC_TUNABLES`, …).
    """
    if not sys.platform.startswith("linux"):
        return False
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _NEVER) and mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(kept and mallopt(_M_ARENA_MAX, 1))


def release_freed_memory() -> bool:
    """Give what was freed back to the system now: a stage's temporaries are of no use to the next, smaller one.

    True if anything was given back; it does nothing outside glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return bool(trim is not None and trim(0))
