"""Medians with their spread, and ratios of things that took turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Spread = dict[str, float]


def spread(values: Sequence[float]) -> Spread:
    """{"median", "min", "max"} of what was measured in several rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """{"ratio", "min", "max"}: the quotient of the medians, and the least and greatest quotient of one round.

    Both were measured in the same rounds, so that what slows the machine for a while slows both of a pair.
    """
    pairs = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {"ratio": statistics.median(ours) / statistics.median(theirs), "min": min(pairs), "max": max(pairs)}
