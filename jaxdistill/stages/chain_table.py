"""The resolved chain as a table, before anything compiles."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from jaxdistill.config import describe
from jaxdistill.config.chain import Chain
from jaxdistill.models import EncoderConfig
from jaxdistill.stages.loading import Survey


def print_chain(chain: Chain, surveys: tuple[Survey, ...], console: Console) -> None:
    """Stages in the order they run, with their teachers, shapes and losses."""
    table = Table(title=f"{chain.run.name}: {len(chain.stages)} stages", title_justify="left")
    for column in ("stage", "teacher", "student", "parameters", "loss", "batch", "length", "learning rate"):
        table.add_column(column, justify="right" if column in ("parameters", "batch", "learning rate") else "left")
    for survey, line in zip(surveys, describe(chain), strict=True):
        table.add_row(
            line["key"],
            line["teachers"],
            line["student"],
            f"{survey.parameters:,}",
            line["loss"],
            f"{line['batch']} × {survey.max_length}",
            line["length"],
            line["learning_rate"],
        )
    console.print(table)


def shape_of(config: EncoderConfig) -> str:
    """A model's shape in a few characters."""
    return f"{config.model_type} L{config.num_hidden_layers} H{config.hidden_size}"
