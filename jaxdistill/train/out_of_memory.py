"""Out of device memory: telling it from other errors, and answering it with figures and settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict

import jax

from jaxdistill.errors import MemoryLimitError
from jaxdistill.train.memory import MemoryFigures, Option, StepMemory, options

_MARKS = re.compile(
    r"out of memory|ran out of memory|failed to allocate|attempting to (allocate|reserve)|CUDA_ERROR_OUT_OF_MEMORY"
    r"|exceed(s|ing) available|hbm usage",
    re.IGNORECASE,
)
# a kernel's own scratch memory, which no setting of ours changes
_SCRATCH = re.compile(r"memory space (vmem|smem|cmem|sflag)|scoped (vmem|allocation)", re.IGNORECASE)
_SIZE = r"([\d.]+)([KMGT]?)(?:iB|B)?"
_NEEDED_AND_LIMIT = (
    rf"used {_SIZE} of {_SIZE} hbm",
    rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)",
    rf"hbm usage: {_SIZE}.*exceeding available bytes: {_SIZE}",
)
_REQUESTED = (rf"attempting to (?:reserve|allocate) {_SIZE}", rf"allocat(?:e|ing)(?: request for)? {_SIZE}")

NOTHING_LEFT = "no setting that saves memory is left: take more devices, a smaller student or a smaller teacher"
"""What is said where `options` finds none."""

_NAMES = {"opt_state": "optimizer", "student_params": "student", "teacher_params": "teacher"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a device's memory was too small, compiling or running."""
    return _memory_text(error) is not None


def out_of_memory_error(error: BaseException, step: StepMemory, *, limit: int | None = None) -> MemoryLimitError:
    """The error to raise from `error`: what needs how much, and what would need less, biggest saving first.

    Args:
      error: one of which `is_out_of_memory` is true.
      step: the step that did not fit.
      limit: a device's memory in bytes, if known; where the error tells it, the error is believed.
    """
    text = _memory_text(error) or ""
    needed, told = _needed_and_limit(text)
    limit = told or limit
    now = step.figures()
    lines = [
        "out of device memory" + _shortage(text, needed, limit),
        f"one device holds about {_size(now.total)}: " + _held(now),
    ]
    goal = None if limit is None else _goal(now.total, needed, limit)
    found = options(step, goal)
    if not found:
        lines.append(NOTHING_LEFT)
        return MemoryLimitError("\n".join(lines))
    lines.append("settings that need less, biggest saving first:")
    lines += [f"  {option.setting} (saves {_size(option.saving)}{option.remark})" for option in found]
    if goal is not None:
        lines.append(how_many_fit(step, found, goal))
    return MemoryLimitError("\n".join(lines))


def device_memory_limit() -> int | None:
    """Bytes of memory that the first local device lends out; None where it does not tell (a CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return (stats or {}).get("bytes_limit")


def out_of_memory_figures(error: BaseException) -> tuple[int | None, int | None]:
    """Bytes that an error of which `is_out_of_memory` is true says are needed, and are there, where it says so."""
    return _needed_and_limit(_memory_text(error) or "")


def _goal(estimate: int, needed: int | None, limit: int) -> int:
    """What the estimate must come down to.

    By the compiler's figures, in proportion, whichever way the estimate is wrong; without them, to nine tenths of what
    there is, or of the estimate if that was too low: the rest is fragments, and what is not counted.
    """
    return limit * estimate // needed if needed else 9 * min(limit, estimate) // 10


def _held(figures: MemoryFigures) -> str:
    """What holds how much, the most first."""
    held = sorted(asdict(figures).items(), key=lambda item: -item[1])
    return ", ".join(f"{_NAMES.get(name, name)} {_size(size)}" for name, size in held if size)


def how_many_fit(step: StepMemory, found: Sequence[Option], goal: int) -> str:
    """How many of the options, taken together in their order, bring the figures down to `goal`."""
    for count, option in enumerate(found, start=1):
        step = option.change(step) or step
        if step.figures().total <= goal:
            return "the first alone should fit" if count == 1 else f"the first {count} together should fit"
    return (
        f"all of them together are still {_size(step.figures().total - goal)} too large: take more devices, "
        "a smaller student or a smaller teacher"
    )


def _memory_text(error: BaseException) -> str | None:
    """The message of the error in the chain that tells of device memory; None if there is none.

    Not Python's MemoryError, which is the host's, nor a kernel's scratch memory, nor what else is a RESOURCE_EXHAUSTED:
    quotas, messages too long for gRPC.
    """
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        from_device = isinstance(link, (RuntimeError, ValueError)) and not isinstance(link, MemoryLimitError)
        if from_device and _MARKS.search(text) and _ours_to_change(text):
            return text
        link = link.__cause__ or link.__context__
    return None


def _ours_to_change(text: str) -> bool:
    return not _SCRATCH.search(text) and any(mark in text for mark in ("RESOURCE_EXHAUSTED", "XLA", "CUDA", "hbm"))


def _needed_and_limit(text: str) -> tuple[int | None, int | None]:
    """Bytes that the compiler says it needs and has, if it says so."""
    for pattern in _NEEDED_AND_LIMIT:
        if match := re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            needed, needed_unit, limit, limit_unit = match.groups()
            return _parsed(needed, needed_unit), _parsed(limit, limit_unit)
    return None, None


def _shortage(text: str, needed: int | None, limit: int | None) -> str:
    """What is known of how much was asked for and how much there is."""
    if needed is not None and limit is not None:
        return f": the step needs {_size(needed)} of a device's {_size(limit)}"
    there = "" if limit is None else f" of a device's {_size(limit)}"
    for pattern in _REQUESTED:
        if match := re.search(pattern, text, re.IGNORECASE):
            return f": {_size(_parsed(*match.groups()))} more were asked for than were left{there}"
    return there


def _parsed(number: str, unit: str) -> int:
    """XLA's units are binary, and the B is often left out."""
    return int(float(number.rstrip(".")) * 1024 ** " KMGT".index(unit.upper() or " "))


def _size(count: int) -> str:
    """As XLA writes it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
