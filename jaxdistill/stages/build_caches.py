"""Build teacher caches ahead of a run: on a machine with accelerators, say, for students that train on others."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from jaxdistill import data
from jaxdistill.config import build_chain
from jaxdistill.config.chain import Chain, ChainStage
from jaxdistill.config.schema import Run
from jaxdistill.errors import ConfigError
from jaxdistill.parallel import use_compilation_cache
from jaxdistill.run_directory import read_record
from jaxdistill.stages.prepare import Preparation
from jaxdistill.stages.teacher_files import open_cache


def build_caches(
    run: Run, *, stage: str | None = None, rebuild: bool = False, console: Console | None = None
) -> list[dict[str, Any]]:
    """Build the caches of all stages with `teacher_cache: disk`, or continue building them; what is there is checked.

    Args:
      run: what `config.load_run` returns.
      stage: only this stage's.
      rebuild: anew, whatever is there.
      console: where progress is printed; default, the terminal.

    Returns:
      One row a cache: stage, teacher, directory, rows, bytes, and what was measured (`kl_error` by temperature).

    Raises:
      ConfigError: no such stage, none with a cache, or none whose teacher is there yet.
      CheckpointError: a cache is stale or damaged, and `rebuild` is not set.
    """
    console = console or Console()
    chain = build_chain(run)
    names = list(dict.fromkeys(each.name for each in chain.stages))
    if stage is not None and stage not in names:
        raise ConfigError(f"--stage: there is no stage {stage!r}; expected one of {', '.join(names)}")
    asked = [each for each in chain.stages if stage in (None, each.name)]
    cached = [each for each in asked if each.teacher_cache == "disk"]
    if not cached:
        raise ConfigError(
            f"{f'stages.{stage}' if stage else 'the run'}: no teacher_cache: disk there; write it, or add "
            "teacher_cache=disk to the command"
        )
    waiting = {each.key: _untrained(chain, each) for each in cached}
    ready = [each for each in cached if not waiting[each.key]]
    if not ready:
        stages = ", ".join(dict.fromkeys(name for names in waiting.values() for name in names))
        raise ConfigError(
            f"{chain.directory}: the teachers of these caches are stages that have not finished ({stages}); train them "
            "first with `jaxdistill run CONFIG`, which builds the caches as well"
        )
    use_compilation_cache(data.default_cache_dir() / "compiled")
    preparation = Preparation(chain, console)
    preparation.survey(check_caches=not rebuild)
    rows: dict[str, dict[str, Any]] = {}
    for each in ready:
        survey = preparation.surveys[each.key]
        for files, teacher in zip(preparation.caching.files(survey), each.teachers, strict=True):
            if str(files.directory) in rows:
                continue
            found = open_cache(files, console, rebuild=rebuild)
            rows[str(files.directory)] = {
                "stage": each.name,
                "teacher": teacher.label,
                "directory": str(files.directory),
                "rows": len(found),
                "bytes": found.manifest.bytes,
                **found.manifest.measured,
            }
    for each in cached:
        if waiting[each.key]:
            console.print(f"{each.key}: waits for {', '.join(waiting[each.key])}, which has not been trained")
    return list(rows.values())


def _untrained(chain: Chain, stage: ChainStage) -> list[str]:
    """Stages among the teachers that have not finished."""
    theirs = [chain.stage(teacher.stage) for teacher in stage.teachers if teacher.stage is not None]
    return [each.key for each in theirs if read_record(each.directory) is None]
