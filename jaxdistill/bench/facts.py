"""Where and when something was measured: without it a figure says nothing."""

from __future__ import annotations

import datetime
from typing import Any

import jax

import jaxdistill
from jaxdistill.bench.processors import processors


def measured_on() -> dict[str, Any]:
    """{"created", "jaxdistill", "jax", "device", "processors"}; processors: the numbers of those it could use."""
    device = jax.devices()[0]
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jaxdistill": jaxdistill.__version__,
        "jax": jax.__version__,
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "processors": processors(),
    }
