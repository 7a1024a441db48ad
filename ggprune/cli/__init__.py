"""The command line: one module a command, imported only when it is run."""

from ggprune.cli.main import cli, main

__all__ = ["cli", "main"]
