"""What stands behind an option, read from text: functions that click takes as types."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ggprune.errors import InputError
from ggprune.fields import read_size, read_tokens

FILE = click.Path(path_type=Path)


def reader(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Make a click type of a function: what is read already (a default) stays as it is."""

    @functools.wraps(read)
    def convert(value: Any) -> Any:
        try:
            return read(value) if isinstance(value, str) else value
        except InputError as error:
            raise click.BadParameter(error.message) from None

    return convert


@reader
def size(value: str) -> int:
    """Read a number of bytes; help names it after this function."""
    return read_size(value)


@reader
def tokens(value: str) -> int:
    """Read a number of tokens."""
    return read_tokens(value)


@reader
def number_or_auto(value: str) -> int | str:
    """Read a number of experts, or auto."""
    if value == "auto":
        return value
    if not value.isascii() or not value.isdigit() or not int(value):
        raise click.BadParameter(f"{value!r} is not a number of experts; write 6 or auto")
    return int(value)


@reader
def named_path(value: str) -> tuple[str, str]:
    """Split NAME=PATH; a recipe, @NAME, brings names of its own."""
    if value.startswith("@"):
        return value, value
    name, _, path = value.partition("=")
    if not name or not path:
        raise click.BadParameter(f"{value!r} is not NAME=PATH, for instance code=my_project.txt")
    return name, path


@reader
def pattern_and_type(value: str) -> tuple[str, str]:
    """Split PATTERN=TYPE at the last equals sign: patterns may have others."""
    pattern, _, kind = value.rpartition("=")
    if not pattern or not kind:
        raise click.BadParameter(f"{value!r} is not PATTERN=TYPE, for instance ffn_down_exps=q6_k")
    return pattern, kind


@reader
def part(value: str) -> tuple[int, int]:
    """Read 3/16."""
    number, _, count = value.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, for instance 3/16")


@reader
def numbers(value: str) -> tuple[float, ...]:
    """Read 3,1: numbers with commas or slashes between, as llama.cpp takes them."""
    try:
        return tuple(float(each) for each in value.replace("/", ",").split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of numbers; write for instance 3,1"
        ) from None


@reader
def named_numbers(value: str) -> tuple[tuple[str, float], ...]:
    """Read answer=1,prompt=0.25."""
    try:
        pairs = (each.split("=") for each in words(value))
        return tuple((name.strip(), float(number)) for name, number in pairs)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not KIND=NUMBER,…; write for instance answer=1,prompt=0.25"
        ) from None


@reader
def words(value: str) -> tuple[str, ...]:
    """Split at commas."""
    return tuple(each.strip() for each in value.split(",") if each.strip())


@reader
def counts(value: str) -> tuple[int, ...]:
    """Read 64,96,112."""
    try:
        return tuple(int(each) for each in words(value.replace(" ", ",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list like 64,96,112") from None


@reader
def file_or_yes(value: str) -> Path | bool:
    """Read a file's name, or yes."""
    return True if value == "yes" else Path(value)


@reader
def more_options(value: str) -> tuple[str, tuple[str, ...]]:
    """Split COMMAND OPTION… as a shell would."""
    command, *rest = shlex.split(value) or [""]
    return command, tuple(rest)


@reader
def parameter(value: str) -> tuple[str, float | int | str]:
    """Read NAME=VALUE, a number as one."""
    name, _, text = value.partition("=")
    if not name or name == value:
        raise click.BadParameter(f"{value!r} is not NAME=VALUE, for instance temperature=0.7")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(text)
    return name, text


@reader
def model(value: str) -> Path:
    """Find a GGUF file, ``hf://owner/repo/file.gguf[@revision]`` or ``owner/repo:Q4_K_M``.

    Only a value that does not exist as a path and looks like a name on the Hub loads the Hub's
    library and downloads.
    """
    context = click.get_current_context(silent=True)
    local = ":" not in value or os.path.lexists(value)
    if local or (context is not None and context.resilient_parsing):
        return Path(value)
    from ggprune.hub.download import resolve_model

    return resolve_model(value)


#: For ``click.argument("model", type=MODEL)``.
MODEL = model
