"""What the user asks a plan for, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import ConfigError
from jaxdistill.plan.stage import Planning
from jaxdistill.plan.targets import open_target


def make_planning(
    target: str,
    *,
    model_configs: Sequence[str] = (),
    stages: Sequence[str] = (),
    price: float | None = None,
    hlo_dir: Path | None = None,
) -> Planning:
    """A `Planning` from what was written.

    Args:
      target: as `open_target` takes it.
      model_configs: `ID=FILE` texts.
      stages, price, hlo_dir: as of `Planning`.

    Raises:
      ConfigError: an unknown target, one whose compiler is not installed, or a file that is not there.
    """
    files: dict[str, Path] = {}
    for text in model_configs:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise ConfigError(
                f"--model-config: got {text!r}; expected ID=FILE, such as meta-llama/Llama-2-7b-hf=c.json"
            )
        files[name] = Path(path).expanduser()
        if not files[name].exists():
            raise ConfigError(f"--model-config: {path}: no such file")
    return Planning(open_target(target), files, stages=tuple(stages), price=price, hlo_dir=hlo_dir)
