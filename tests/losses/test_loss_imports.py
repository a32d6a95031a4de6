from __future__ import annotations

import subprocess
import sys

HEAVY = ["flax", "transformers", "datasets", "orbax", "torch", "grain", "pydantic", "tensorflow", "jaxdistill.config"]


def test_losses_import_nothing_heavy():
    script = f"import sys; from jaxdistill import losses; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_losses_starts_no_device():
    """Someone may still want to choose a platform, or to initialise several hosts."""
    script = (
        "from jaxdistill import losses\nfrom jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
