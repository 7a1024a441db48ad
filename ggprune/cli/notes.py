"""What a user reads on stderr: notes, and fields of the library as options of the command."""

from __future__ import annotations

import functools
import logging
import re

import click

#: ``keep=9``, up to a space or the punctuation before it.
_FIELD = re.compile(r"(?<![\w=./-])(?P<name>[a-z][a-z0-9_]*)=(?P<value>\S+?)(?=[:,.;)`]*(?:\s|$))")


class _Notes(logging.Handler):
    """Prints a message and nothing else, on whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        context = click.get_current_context(silent=True)
        text = in_options(record.getMessage(), context.command if context else None)
        click.echo(text, err=True)


@functools.cache
def _handler() -> logging.Handler:
    handler = _Notes()
    logger = logging.getLogger("ggprune")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


def show_notes(*, quiet: bool = False) -> None:
    """Print the package's notes on stderr; only warnings with ``quiet``."""
    _handler().setLevel(logging.WARNING if quiet else logging.INFO)


def in_options(text: str, command: click.Command | None) -> str:
    """Restate ``name=value`` as the option of a command: ``--keep 9``, ``--force``.

    The library speaks to programs, so its messages name fields and arguments. What the command
    has no option for stays as it is.
    """
    flags = {
        str(p.name): p for p in (command.params if command else []) if isinstance(p, click.Option)
    }

    def restated(match: re.Match[str]) -> str:
        found = flags.get(match["name"])
        if found is None:
            return match[0]
        flag = next((each for each in found.opts if each.startswith("--")), found.opts[0])
        return flag if found.is_flag else f"{flag} {match['value']}"

    return _FIELD.sub(restated, text)
