"""Click options made from the fields of records, and records from click's arguments.

A record's field (see ``ggprune.types.option``) says the default, the help and the range; its name
and its type make the option. What a command line does otherwise stands in FLAGS and PARSERS.
"""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ggprune.cli.terminal import in_options, show_notes

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
    "parallel": ("-np", "--parallel"),
    "verbose": ("-v", "--verbose"),
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
    exponent = "KMGT".index(match[2].upper()) + 1 if match[2] else 0
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
    "types": lambda value: words(value.replace(" ", ",")),
}
#: The same by a field's type.
_KINDS: dict[str, Any] = {"Path": FILE, "Path | bool": file_or_yes, "tuple[int, ...]": counts}

#: Lists of which each value given may hold several, with commas between.
_JOINED = frozenset({"override_tensor", "rpc", "types"})


#: Sections of the help, in their order, by the record whose fields stand in them.
SECTIONS = {
    "Budget": "How many experts stay",
    "Request": "Which experts stay",
    "Settings": "Calibration and context",
    "": "Options",
    "RunOptions": "Running the model, as llama.cpp calls it",
}
#: What the short help shows of these sections.
COMMON = frozenset(
    {
        *("keep", "ratio", "retain", "target_size", "fit_vram", "method", "blend"),
        *("protect_domains", "ctx", "max_tokens", "generate", "shard", "threads", "gpu_layers"),
    }
)
_ALL = "ggprune.help_all"


def _show_all(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[_ALL] = True
        click.echo(context.get_help())
        context.exit()


class Sectioned(click.Command):
    """A command whose help has sections, with the rare options only in ``--help-all``."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Add --help-all."""
        every = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_all,
            help="Show all options and exit.",
        )
        return [*super().get_params(ctx), every]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, and how many options are left out."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS.values()}
        left_out = 0
        for option in self.get_params(ctx):
            if isinstance(option, click.Argument):
                continue
            section = getattr(option, "section", None)
            if section and option.name not in COMMON and not ctx.meta.get(_ALL):
                left_out += 1
            elif record := option.get_help_record(ctx):
                sections[section or SECTIONS[""]].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{left_out} more options: --help-all")


def options_of(record: type, *only: str) -> Callable[[Command], Command]:
    """Give a command the options of a record, in the order of its fields.

    Args:
        record: a dataclass.
        only: names of the fields; none for all.
    """

    def decorate(command: Command) -> Command:
        for field in reversed(list(_described(record))):
            if not only or field.name in only:
                command = _option(field, SECTIONS.get(record.__name__))(command)
        return command

    return decorate


def record_from(record: type[Record], arguments: Mapping[str, Any], **others: Any) -> Record:
    """Make a record of a command's arguments; ``others`` are fields that have no option."""
    given = {f.name: arguments[f.name] for f in _described(record) if f.name in arguments}
    return record(**given, **others)


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
    about, kind = field.metadata, str(field.type).removesuffix(" | None")
    flag = f"--{field.name.replace('_', '-')}"
    default = None if field.default is MISSING else field.default
    if kind == "bool":
        flags = FLAGS.get(field.name, (flag,))
        return _switch(field.name, flags, bool(default), about["help"], section)
    return click.option(
        *FLAGS.get(field.name, (flag,)),
        field.name,
        cls=_Completed,
        section=section,
        type=_type(field.name, kind, about),
        default=default,
        multiple=kind.startswith(("tuple[str", "tuple[tuple")),
        callback=_joined if field.name in _JOINED else None,
        metavar=about["metavar"],
        help=about["help"],
        show_default=about["default_help"] or (bool(default) and kind != "tuple[int, int]"),
    )


class _Completed(click.Option):
    """An option whose help names other fields, or is completed when somebody asks for it.

    Args:
        section: of the help that it stands in.
    """

    def __init__(self, *arguments: Any, section: str | None = None, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.section = section

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        plain, more = self.help, COMPLETED.get(str(self.name))
        self.help = f"{plain} {more(ctx)}" if more else plain
        try:
            record = super().get_help_record(ctx)
        finally:
            self.help = plain
        return record and (record[0], in_options(record[1], ctx.command))


def _methods(ctx: click.Context) -> str:
    # The table of methods needs numpy and half of the package, which the short help does not wait
    # for.
    if not ctx.meta.get(_ALL) and "ggprune.choosing.methods" not in sys.modules:
        return "--help-all lists them."
    from ggprune.choosing.methods import ordered

    scored = ", ".join(method.name for method in ordered() if method.decide is None)
    deciding = ", ".join(method.name for method in ordered() if method.decide is not None)
    return f"By score: {scored}. By measuring plans on the search text: {deciding}."


#: What ends a help text, where it takes time to find out.
COMPLETED: dict[str, Callable[[click.Context], str]] = {"method": _methods}


def _switch(
    name: str, flags: tuple[str, ...], default: bool, text: str, section: str | None
) -> Callable[[Command], Command]:
    """Make a flag; of what is on by default, one that switches it off."""
    if not default:
        return click.option(*flags, name, cls=_Completed, section=section, is_flag=True, help=text)
    return click.option(
        *(flag.replace("--", "--no-", 1) for flag in flags),
        name,
        cls=_Completed,
        section=section,
        is_flag=True,
        callback=_not,
        help=text,
    )


def _not(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
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
    if kind == "int":
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


def text_option(
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


def output_option(help: str, *, required: bool = False) -> Callable[[Command], Command]:
    """-o/--output."""
    return click.option("-o", "--output", type=FILE, required=required, help=help)


def _quieten(_ctx: click.Context, _param: click.Parameter, quiet: bool) -> None:
    show_notes(quiet=quiet)


mtp_option = click.option(
    "--mtp",
    type=click.Choice(["prune", "drop"]),
    default="prune",
    show_default=True,
    help="MTP layers: prune by a stated rule, or drop.",
)


def writing_options(command: Command) -> Command:
    """How a pruned model is written; see api.pruning.apply."""
    for option in (
        force_option,
        click.option(
            "--no-verify",
            "verify",
            is_flag=True,
            callback=_not,
            help="Do not compare the result with the source, nor load and measure it.",
        ),
        click.option("--split-max-size", type=size, help="Write shards of at most this size: 50G."),
        mtp_option,
    ):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
force_option = click.option("--force", is_flag=True, help="Replace existing files.")
#: Eager: a MODEL to download wants to know it, wherever -q stands.
quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_quieten,
    help="No progress, no notes.",
)
