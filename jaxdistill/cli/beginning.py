"""How the commands that work through a run's stages begin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdistill.cli.terminal import open_console
from jaxdistill.host_memory import keep_freed_memory

if TYPE_CHECKING:
    from rich.console import Console

    from jaxdistill.config import Run


def begin(
    config: Path, overrides: Sequence[str] | None, output_dir: Path | None, *, stderr: bool, quiet: bool = False
) -> tuple[Run, Console]:
    """Read a configuration, and let the processes of a job find each other.

    Args:
      config: YAML file.
      overrides: `key.path=value` texts.
      output_dir: written over that of the configuration.
      stderr: the console is for people beside programs.
      quiet: it says nothing; on all hosts but the lead it never does.

    Raises:
      ConfigError: anything wrong with the configuration, before anything heavy is imported.
    """
    from jaxdistill.config import load_run

    own = () if output_dir is None else (f"output_dir={json.dumps(str(output_dir))}",)
    loaded = load_run(config, (*(overrides or ()), *own))
    keep_freed_memory()  # before numpy and jax are imported
    from jaxdistill.parallel.distributed import is_lead_host, start

    start()
    return loaded, open_console(stderr=stderr, quiet=quiet or not is_lead_host())
