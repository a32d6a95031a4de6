"""The command line: `jaxdistill COMMAND`."""

from jaxdistill.cli.app import main

__all__ = ["main"]
