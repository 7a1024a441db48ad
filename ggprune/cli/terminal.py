"""What a user sees: notes and progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ggprune.types import Advance, log_progress
from ggprune.util import printable

#: ``keep=9``, up to a space or the punctuation before it; or a field's name alone, in backticks.
_FIELD = re.compile(
    r"(?<![\w=./-])(?P<name>[a-z][a-z0-9_]*)=(?P<value>\S+?)(?=[:,.;)`]*(?:\s|$))"
    r"|`(?P<alone>[a-z][a-z0-9_]*)`"
)


class _Notes(logging.Handler):
    """Prints a message and nothing else, on whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        context = click.get_current_context(silent=True)
        text = in_options(record.getMessage(), context.command if context else None)
        click.echo(printable(text, keep="\n"), err=True)


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
    """Restate ``keep=9`` and `` `keep` `` as options of a command: ``--keep 9``, ``--keep``.

    The library speaks to programs, so its messages name fields and arguments. What the command
    has no option for stays as it is, but for a context that the command sets itself.
    """
    options = [p for p in (command.params if command else []) if isinstance(p, click.Option)]
    flags = {str(p.name): (max(p.opts, key=len), p) for p in options}
    for option in options:  # An argument `keeps` may be the option --keep.
        for flag in option.opts:
            flags.setdefault(flag.lstrip("-").replace("-", "_"), (flag, option))

    def restated(match: re.Match[str]) -> str:
        name = match["name"] or match["alone"]
        if name not in flags:
            is_context = command is not None and match["name"] == "ctx"
            return f"a context of {match['value']} tokens" if is_context else match[0]
        flag, found = flags[name]
        return flag if found.is_flag or match["alone"] else f"{flag} {match['value']}"

    return _FIELD.sub(restated, text)


def is_quiet() -> bool:
    """Whether only warnings are shown."""
    return _handler().level > logging.INFO


def note(text: str) -> None:
    """Print a note on stderr, unless quiet."""
    if not is_quiet():
        click.echo(text, err=True)


@contextmanager
def progress_bar(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[Advance]:
    """Show a bar on stderr with rate and time left, or lines without a terminal."""
    if not sys.stderr.isatty():
        with log_progress(total, what, unit, initial=initial) as advance:
            yield advance
        return
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        disable=is_quiet(),
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        yield bar.update


def print_json(value: Any) -> None:
    """Print a result for scripts."""
    import json

    click.echo(printable(json.dumps(value, indent=2, ensure_ascii=False), keep="\n"))


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = ()) -> str:
    """Columns aligned with two spaces between; numbers to the right."""
    lines = [list(map(printable, row)) for row in ([header, *rows] if header else rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rendered = []
    for line in lines:
        cells = [
            cell.rjust(width) if _is_number(rows, i) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        rendered.append("  ".join(cells).rstrip())
    return "\n".join(rendered)


def _is_number(rows: Sequence[Sequence[str]], column: int) -> bool:
    return column > 0 and all(row[column][:1].isdigit() or not row[column] for row in rows)
