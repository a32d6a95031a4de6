"""Run a chain to its end: train what has not finished, evaluate, export, sum up."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from rich.console import Console

from jaxdistill import data, models
from jaxdistill.config import build_chain
from jaxdistill.config.chain import ChainStage, ResolvedTeacher
from jaxdistill.config.schema import Run
from jaxdistill.host_memory import release_freed_memory
from jaxdistill.parallel import use_compilation_cache
from jaxdistill.parallel.distributed import is_lead_host
from jaxdistill.parallel.hosts import on_every_host, on_lead_host
from jaxdistill.report.html import write_report
from jaxdistill.report.table import print_table
from jaxdistill.run_directory import read_record
from jaxdistill.stages.chain_table import print_chain, shape_of
from jaxdistill.stages.directory import locked, reopen_if_damaged, settle_config, write_record
from jaxdistill.stages.inputs import given_reference
from jaxdistill.stages.loading import LoadedTeacher, Survey
from jaxdistill.stages.prepare import Preparation
from jaxdistill.stages.search import run_search
from jaxdistill.stages.summary import Summary
from jaxdistill.stages.sweep import SweepResult, run_sweep, summary_rows
from jaxdistill.train.loop import train_stage


def execute(run: Run, *, console: Console | None = None) -> Summary:
    """Train every stage of a run that has not finished yet, and return what was measured.

    In a job of several processes (`parallel.distributed.start`) every process makes the same call; the directory is one
    that all of them reach, and the first process alone prints and writes what is not a checkpoint.

    The same call on the same directory continues an interrupted run: finished stages are read back, the interrupted
    one goes on from its last whole checkpoint.

    Args:
      run: what `config.load_run` returns.
      console: where progress and tables go; default, the terminal.

    Returns:
      The summary, also written to `summary.json` and `report.html` in the run directory.

    Raises:
      UserError: anything wrong with the configuration, the data or the models, before the first stage trains.
      DivergedError, Interrupted, ExternalError: see `jaxdistill.errors`.
    """
    console = (console or Console()) if is_lead_host() else Console(quiet=True)
    chain = build_chain(run)
    with ExitStack() as held:
        on_lead_host(lambda: held.enter_context(locked(chain.directory)))
        on_lead_host(lambda: settle_config(run, chain.directory))
        use_compilation_cache(data.default_cache_dir() / "compiled")
        preparation = Preparation(chain, console)
        on_every_host(lambda: print_chain(chain, preparation.survey(), console))
        summary = Summary(run.name, chain.directory)
        for given in chain.given:
            summary.add(_given_row(preparation, given_reference(given)))
        for stage in chain.stages:
            record = on_lead_host(lambda stage=stage: _finished(stage, console))
            finished = record is not None
            if record is None:
                record = _run_stage(preparation, preparation.surveys[stage.key], console)
                release_freed_memory()
            else:
                console.print(f"{stage.key}: finished already")
            for swept in record.get("sweep", ()):
                summary.add(swept)
            summary.add(record["row"])
            if finished and stage is not chain.stages[-1]:
                continue  # written now, the file would lose the rows after this one
            on_lead_host(lambda: _write(summary))
    print_table(summary.to_dict(), console)
    console.print(f"summary: {chain.directory / 'summary.json'}   report: {chain.directory / 'report.html'}")
    return summary


def _finished(stage: ChainStage, console: Console) -> dict[str, Any] | None:
    """The record of a stage that has finished and whose checkpoint is whole."""
    record = read_record(stage.directory)
    if record is not None and (damage := reopen_if_damaged(stage.directory, record)) is not None:
        console.print(f"[yellow]{stage.key}: {damage}[/yellow]")
        return None
    return record


def _write(summary: Summary) -> None:
    summary.write()
    write_report(summary.directory)


def _run_stage(preparation: Preparation, survey: Survey, console: Console) -> dict[str, Any]:
    """Train one stage, evaluate what it hands on, export it, and record it as finished."""
    stage = survey.stage
    swept = _run_swept(preparation, survey, console)
    if swept is not None:
        trained, measured = swept.best, swept.winner["eval"]
    else:
        trained = train_stage(preparation.task.job(survey), console)
        loaded = LoadedTeacher(stage.key, survey.student, trained.params, trained.identity)
        measured = preparation.task.evaluate(survey, loaded, index=0, taught=True)
    row = {
        "name": stage.name,
        "key": stage.key,
        "phase": stage.phase,
        "begins": stage.begins,
        "seed": stage.seed,
        "teacher": [teacher.label for teacher in stage.teachers] or None,
        "given": False,
        **_model_facts(survey.student, trained.params),
        "eval": measured,
        "train": trained.measured,
    }
    record = {"checkpoint": trained.step, "identity": trained.identity, "row": row}
    if swept is not None:
        record["sweep"] = summary_rows(swept, row)
        row["chosen"] = swept.winner["sweep"]

    def leave() -> None:
        directory = stage.directory / "student"
        models.save_pretrained(survey.student, trained.params, directory, tokenizer=survey.tokenizers[0])
        write_record(stage.directory, record)

    on_lead_host(leave)
    return record


def _run_swept(preparation: Preparation, survey: Survey, console: Console) -> SweepResult | None:
    """The students of a stage that has several; None of another stage."""
    if survey.stage.search is not None:
        return run_search(preparation.task, survey, console)
    return run_sweep(preparation.task, survey, console) if survey.stage.variants else None


def _given_row(preparation: Preparation, reference: ResolvedTeacher) -> dict[str, Any]:
    """Evaluate a teacher that no stage trained, on the data of the first stage that learns from it."""
    survey, index = preparation.first_use(reference)
    teacher = preparation.task.teacher(reference, survey)
    return {
        "name": teacher.name,
        "key": teacher.name,
        "phase": None,
        "begins": None,
        "seed": None,
        "teacher": None,
        "given": True,
        **_model_facts(teacher.model, teacher.params),
        "eval": preparation.task.evaluate(survey, teacher, index=index, taught=False),
        "train": None,
    }


def _model_facts(model: models.Model, params: Any) -> dict[str, Any]:
    return {
        "architecture": shape_of(model.config),
        "parameters": models.parameter_count(params),
        "bytes": models.parameter_bytes(params),
    }
