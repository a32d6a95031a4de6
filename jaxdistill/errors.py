"""Errors that reach the user as one clear line, and the exit status each of them means."""

from __future__ import annotations


class JaxdistillError(Exception):
    """Base of every error we raise on purpose; `exit_status` is what the command line returns for it."""

    exit_status = 1


class UserError(JaxdistillError, ValueError):
    """Something the user wrote or gave is wrong: exit status 2."""

    exit_status = 2


class ConfigError(UserError):
    """The configuration is invalid. `problems` holds one line per problem, each with its dotted path."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(UserError):
    """A data file or row cannot be used."""


class ModelError(UserError):
    """A model directory, its configuration or its weights cannot be used."""


class CheckpointError(UserError):
    """A checkpoint or run directory cannot be used."""


class MemoryLimitError(UserError):
    """The settings need more device memory than there is; the message says what needs how much and what needs less."""


class DivergedError(JaxdistillError):
    """Training produced non-finite losses or gradients too many times in a row: exit status 3."""

    exit_status = 3


class ExternalError(JaxdistillError):
    """Something outside the program failed (network, disk, package index): exit status 4."""

    exit_status = 4


class Interrupted(JaxdistillError):
    """SIGTERM or SIGINT arrived; the state was checkpointed: exit status 143."""

    exit_status = 143
