"""Click options made from the fields of records, and records from click's arguments.

A record's field (see ``ggprune.types.option``) says the default, the help and the range; its name
and its type make the option. What a command line does otherwise stands in FLAGS and PARSERS.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., Any])
Record = TypeVar("Record")

FILE = click.Path(path_type=Path)

#: Names other than ``--field-name``: llama.cpp's short ones, and what reads better.
FLAGS: dict[str, tuple[str, ...]] = {
    "threads": ("-t", "--threads"),
    "gpu_layers": ("-ngl", "--gpu-layers"),
    "cpu_moe": ("-cmoe", "--cpu-moe"),
    "n_cpu_moe": ("-ncmoe", "--n-cpu-moe"),
    "override_tensor": ("-ot", "--override-tensor"),
    "split_mode": ("-sm", "--split-mode"),
    "tensor_split": ("-ts", "--tensor-split"),
    "main_gpu": ("-mg", "--main-gpu"),
    "flash_attn": ("-fa", "--flash-attn"),
    "cache_type_k": ("-ctk", "--cache-type-k"),
    "cache_type_v": ("-ctv", "--cache-type-v"),
    "ubatch": ("-ub", "--ubatch"),
    "rounding": ("--round",),
    "protect_domains": ("--protect-domain",),
    "tensor_types": ("--tensor-type",),
}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_TOKENS = re.compile(r"(\d+)\s*(k?)", re.IGNORECASE)


def reader(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Make a click type of a function: what is read already (a default) stays as it is."""

    @functools.wraps(read)
    def convert(value: Any) -> Any:
        return read(value) if isinstance(value, str) else value

    return convert


@reader
def size(value: str) -> int:
    """Read a number of bytes: 14G, 500M, 24GiB."""
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write 14G, 500M or 24GiB")
    exponent = "KMGT".find(match[2].upper()) + 1
    return int(float(match[1]) * (1024 if match[3] else 1000) ** exponent)


@reader
def tokens(value: str) -> int:
    """Read a number of tokens: 4096, or 32k (of 1024)."""
    match = _TOKENS.fullmatch(value.strip())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{value!r} is not a number of tokens; write 4096 or 32k")
    return int(match[1]) * (1024 if match[2] else 1)


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
def words(value: str) -> tuple[str, ...]:
    """Split at commas."""
    return tuple(each.strip() for each in value.split(",") if each.strip())


@reader
def counts(value: str) -> tuple[int, ...]:
    """Read 64,96,112."""
    try:
        return tuple(int(each) for each in words(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list like 64,96,112") from None


#: How a field's text is read, where its type does not tell.
PARSERS: dict[str, Callable[[str], Any]] = {
    "target_size": size,
    "fit_vram": size,
    "split_max_size": size,
    "context": tokens,
    "experts_used": number_or_auto,
    "tensor_split": numbers,
    "tensor_types": pattern_and_type,
    "shard": part,
}
#: Lists of which each value given may hold several, with commas between.
_JOINED = frozenset({"override_tensor", "rpc"})


def options_of(*records: type, leave_out: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Give a command the options of records, in the order of their fields."""

    def decorate(command: Command) -> Command:
        described = [field for record in records for field in _described(record)]
        for field in reversed(described):
            if field.name not in leave_out:
                command = _option(field)(command)
        return command

    return decorate


def record_from(record: type[Record], arguments: Mapping[str, Any], **others: Any) -> Record:
    """Make a record of a command's arguments; ``others`` are fields that have no option."""
    given = {f.name: arguments[f.name] for f in _described(record) if f.name in arguments}
    return record(**given, **others)


def given_of(*records: type) -> list[str]:
    """Names of the fields of records that the user has set on the command line."""
    context = click.get_current_context()
    return [
        field.name
        for record in records
        for field in _described(record)
        if context.get_parameter_source(field.name) is ParameterSource.COMMANDLINE
    ]


def _described(record: type) -> Iterator[Field[Any]]:
    return (field for field in fields(record) if "help" in field.metadata)


def _option(field: Field[Any]) -> Callable[[Command], Command]:
    about, kind = field.metadata, str(field.type).removesuffix(" | None")
    flag = f"--{field.name.replace('_', '-')}"
    default = None if field.default is MISSING else field.default
    if kind == "bool":
        return _switch(field.name, FLAGS.get(field.name, (flag,)), bool(default), about["help"])
    several = kind.startswith("tuple[str") or field.name in ("tensor_types", "always_keep")
    return click.option(
        *FLAGS.get(field.name, (flag,)),
        field.name,
        type=_type(field.name, kind, about),
        default=default,
        multiple=several,
        callback=_joined if field.name in _JOINED else None,
        metavar=about["metavar"],
        help=about["help"],
        show_default=about["default_help"] or bool(default),
    )


def _switch(
    name: str, flags: tuple[str, ...], default: bool, text: str
) -> Callable[[Command], Command]:
    """A flag; of what is on by default, one that switches it off."""
    if not default:
        return click.option(*flags, name, is_flag=True, help=text)
    return click.option(
        *(flag.replace("--", "--no-", 1) for flag in flags),
        name,
        is_flag=True,
        callback=lambda _ctx, _param, value: not value,
        help=text,
    )


def _type(name: str, kind: str, about: Mapping[str, Any]) -> Any:
    """What click reads a value with."""
    if name in PARSERS:
        return PARSERS[name]
    if name in _JOINED:
        return words
    if about["choices"]:
        return click.Choice(about["choices"])
    low, high = about["minimum"], about["maximum"]
    open_low, open_high = about["above"], about["below"]
    if kind == "int":
        return click.IntRange(low, high)
    if kind == "float":
        return click.FloatRange(
            low if open_low is None else open_low,
            high if open_high is None else open_high,
            min_open=open_low is not None,
            max_open=open_high is not None,
        )
    return FILE if kind == "Path" else str


def _joined(
    _ctx: click.Context, _param: click.Parameter, values: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
    return tuple(text for texts in values for text in texts)
