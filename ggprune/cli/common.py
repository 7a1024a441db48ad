"""What commands share: options, parameter types, progress, tables."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ggprune.cli.notes import show_notes
from ggprune.cli.options import options_of, record_from
from ggprune.llama.options import RunOptions
from ggprune.util import human_size as human_size

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 14G, 500M, 24GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write 14G, 500M or 24GiB", param, ctx)
        exponent = "KMGT".find(match[2].upper()) + 1
        unit = 1024**exponent if match[3] else _UNITS[match[2].upper()]
        return int(float(match[1]) * unit)


class NamedPath(click.ParamType):  # type: ignore[type-arg]
    """NAME=PATH or @RECIPE, for --text."""

    name = "name=path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split it."""
        if isinstance(value, tuple):
            return value
        if str(value).startswith("@"):
            return str(value), str(value)  # A recipe brings its own names.
        name, equals, path = str(value).partition("=")
        if not equals or not name or not path:
            self.fail(f"{value!r} is not NAME=PATH, for instance code=my_project.txt", param, ctx)
        return name, path


SIZE = Size()
NAMED_PATH = NamedPath()
FILE = click.Path(path_type=Path)


def output_option(help_text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """-o/--output."""
    return click.option("-o", "--output", type=FILE, required=required, help=help_text)


def json_option(command: Command) -> Command:
    """--json."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
    return option(command)


def force_option(command: Command) -> Command:
    """--force."""
    return click.option("--force", is_flag=True, help="Replace existing files.")(command)


def verbosity_options(command: Command) -> Command:
    """-q and -v."""
    # Eager: a MODEL to download wants to know it, wherever -q stands.
    command = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        is_eager=True,
        callback=_quieten,
        help="No progress, no notes.",
    )(command)
    return click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log too.")(command)


def _quieten(_ctx: click.Context, _param: click.Parameter, quiet: bool) -> bool:
    show_notes(quiet=quiet)
    return quiet


def text_options(command: Command) -> Command:
    """--text, --ctx, --max-tokens: what to run the model over."""
    for option in (
        click.option(
            "--max-tokens", type=click.IntRange(1), help="Use at most this much of each text."
        ),
        click.option(
            "--ctx", type=click.IntRange(8), default=2048, show_default=True, help="Context."
        ),
        click.option(
            "--text",
            "texts",
            type=NAMED_PATH,
            multiple=True,
            metavar="NAME=PATH",
            help="Text of a domain instead of the built-in ones; repeatable.",
        ),
    ):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """Options of llama.cpp, with its names; see run_options_from."""
    return options_of(RunOptions)(command)


def run_options_from(arguments: dict[str, Any], *, verbose: bool = False) -> RunOptions:
    """Make a record of the options of ``run_options``."""
    return record_from(RunOptions, arguments, verbose=verbose)


@contextmanager
def progress_bar(
    total: int, what: str, unit: str, *, quiet: bool = False, initial: int = 0
) -> Iterator[Callable[[int], object]]:
    """A bar on stderr with rate and time left; silent with -q and without a terminal.

    Yields a function that takes the number of units just done.
    """
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        disable=True if quiet else None,
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        yield bar.update


def note(text: str, *, quiet: bool = False) -> None:
    """Say something on stderr."""
    if not quiet:
        click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print a result for scripts."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = ()) -> str:
    """Columns aligned with two spaces between; numbers to the right."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
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
