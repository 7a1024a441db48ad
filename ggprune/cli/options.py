"""Click options made from the fields of records, and records from click's arguments.

A record's field (see ``ggprune.types.option``) says the default, the help and the range; its name
and its type make the option. What a command line does otherwise stands in FLAGS and PARSERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ggprune.cli.help import SECTIONS, FieldOption
from ggprune.cli.terminal import show_notes
from ggprune.cli.values import (
    FILE,
    counts,
    file_or_yes,
    named_numbers,
    named_path,
    number_or_auto,
    numbers,
    part,
    pattern_and_type,
    size,
    tokens,
    words,
)

Command = TypeVar("Command", bound=Callable[..., Any])

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
    "parallel": ("-np", "--parallel"),
    "verbose": ("-v", "--verbose"),
}

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
    "weight": named_numbers,
    "types": lambda value: words(value.replace(" ", ",")),
}
#: The same by a field's type.
_KINDS: dict[str, Any] = {
    "int": int,
    "Path": FILE,
    "Path | bool": file_or_yes,
    "tuple[int, ...]": counts,
}

#: Lists of which each value given may hold several, with commas between.
_JOINED = frozenset({"override_tensor", "rpc", "types", "weight"})


def of(record: type, *only: str) -> Callable[[Command], Command]:
    """Give a command the options of a record, in the order of its fields.

    Args:
        only: names of the fields; none for all.
    """

    def decorate(command: Command) -> Command:
        for field in reversed(list(_described(record))):
            if not only or field.name in only:
                command = _option(field, SECTIONS.get(record.__name__))(command)
        return command

    return decorate


def grouped(arguments: Mapping[str, Any], **records: type) -> dict[str, Any]:
    """Return a command's arguments with those that are fields of records put into these.

    A field that two records have goes to the first; a record may be a field of a later one.
    """
    given = dict(arguments)
    for name, record in records.items():
        own = [field.name for field in fields(record) if field.name in given]
        given[name] = record(**{field: given.pop(field) for field in own})
    return given


def flag_of(option: click.Parameter) -> str:
    """Return the long form of an option."""
    return max(option.opts, key=len)


def given_of(*records: type, names: tuple[str, ...] = ()) -> list[str]:
    """Return the options of records, and of other names, that stand on the command line."""
    context = click.get_current_context()
    wanted = {*names, *(field.name for record in records for field in _described(record))}
    return [
        flag_of(option)
        for option in context.command.params
        if option.name in wanted
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]


def _described(record: type) -> Iterator[Field[Any]]:
    return (field for field in fields(record) if "help" in field.metadata)


def _option(field: Field[Any], section: str | None) -> Callable[[Command], Command]:
    """Make a field's option; of a switch that is on by default, one that switches it off."""
    about, kind = field.metadata, str(field.type).removesuffix(" | None")
    flags = FLAGS.get(field.name, (f"--{field.name.replace('_', '-')}",))
    default = None if field.default is MISSING else field.default
    if kind == "bool":
        if default:
            flags = tuple(flag.replace("--", "--no-", 1) for flag in flags)
        special: dict[str, Any] = {"is_flag": True, "callback": negated if default else None}
    else:
        special = {
            "type": _type(field.name, kind, about),
            "default": default,
            "multiple": kind.startswith(("tuple[str", "tuple[tuple")),
            "callback": _joined if field.name in _JOINED else None,
            "metavar": about["metavar"],
            "show_default": about["default_help"] or (bool(default) and kind != "tuple[int, int]"),
        }
    return click.option(
        *flags, field.name, cls=FieldOption, section=section, help=about["help"], **special
    )


def negated(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    """Turn a switch that says no into a value that says yes; a callback."""
    return not value


def _type(name: str, kind: str, about: Mapping[str, Any]) -> Any:
    """Find what click reads a value with."""
    if name in PARSERS:
        return PARSERS[name]
    if name in _JOINED:
        return words
    if about["choices"]:
        return click.Choice(about["choices"])
    low, high = about["minimum"], about["maximum"]
    open_low, open_high = about["above"], about["below"]
    if kind == "int" and (low, high) != (None, None):
        return click.IntRange(low, high)
    if kind == "float":
        return click.FloatRange(
            low if open_low is None else open_low,
            high if open_high is None else open_high,
            min_open=open_low is not None,
            max_open=open_high is not None,
        )
    return _KINDS.get(kind, str)


def _joined(
    _ctx: click.Context, _param: click.Parameter, values: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
    return tuple(text for texts in values for text in texts)


def text(
    name: str = "text", help: str = "Text of a domain instead of the built-in ones; repeatable."
) -> Callable[[Command], Command]:
    """--text and its like."""
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        type=named_path,
        multiple=True,
        metavar="NAME=PATH",
        help=help,
    )


def output(help: str, *, required: bool = False) -> Callable[[Command], Command]:
    """-o/--output."""
    return click.option("-o", "--output", type=FILE, required=required, help=help)


def answering(longest: str, parallel: str) -> Callable[[Command], Command]:
    """Add the options of commands in which a model answers; both arguments are help texts."""

    def decorate(command: Command) -> Command:
        several = click.option(
            *FLAGS["parallel"],
            type=click.IntRange(1, 256),
            default=8,
            show_default=True,
            help=parallel,
        )
        most = click.option(
            "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help=longest
        )
        return most(several(command))

    return decorate


def _quieten(_ctx: click.Context, _param: click.Parameter, quiet: bool) -> None:
    show_notes(quiet=quiet)


mtp = click.option(
    "--mtp",
    type=click.Choice(["prune", "drop"]),
    default="prune",
    show_default=True,
    help="MTP layers: prune by a stated rule, or drop.",
)


def writing(command: Command) -> Command:
    """How a pruned model is written; see api.applying.apply."""
    for option in (
        force,
        click.option(
            "--no-verify",
            "verify",
            is_flag=True,
            callback=negated,
            help="Do not compare the result with the source, nor load and measure it.",
        ),
        click.option("--split-max-size", type=size, help="Write shards of at most this size: 50G."),
        mtp,
    ):
        command = option(command)
    return command


json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
force = click.option("--force", is_flag=True, help="Replace existing files.")
#: Eager: a MODEL to download wants to know it, wherever -q stands.
quiet = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_quieten,
    help="No progress, no notes.",
)
