"""Help in sections: the common options first, the rare ones only with ``--help-all``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from ggprune.cli.terminal import in_options

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


class FieldOption(click.Option):
    """An option whose help names other fields, or is completed when somebody asks for it.

    Args:
        section: of the help that it stands in.
    """

    def __init__(self, *arguments: Any, section: str | None = None, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.section = section

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Complete the help, and show fields that it names as options."""
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
