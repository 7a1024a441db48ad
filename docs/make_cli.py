"""Write docs/cli.md from what every command says with --help."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

from ggprune.cli.main import COMMANDS, cli
from ggprune.errors import GgpruneError

HERE = Path(__file__).parent
WIDTH = 96


def reference() -> str:
    """Return the whole page."""
    parts = [
        "# Command line",
        "",
        "Made from `--help` by `make docs`; a test keeps it true.",
        "",
        *_section("ggprune", cli, None),
        *_exit_codes(),
    ]
    group = click.Context(cli, info_name="ggprune", terminal_width=WIDTH, max_content_width=WIDTH)
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        parts += _section(f"ggprune {name}", command, group)
    return "\n".join(parts)


def _exit_codes() -> list[str]:
    rows = [
        f"| {kind.exit_code} | {(inspect.getdoc(kind) or '').splitlines()[0]} |"
        for kind in sorted(GgpruneError.__subclasses__(), key=lambda kind: kind.exit_code)
    ]
    return [
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | All was done. |",
        "| 1 | Something else than the following; of `batch`: some of its steps failed. |",
        *rows,
        "| 141 | What read the output has gone. |",
        "",
    ]


def _section(title: str, command: click.Command, parent: click.Context | None) -> list[str]:
    name = title.rpartition(" ")[2]
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=cli.context_settings["help_option_names"],
    )
    context.meta["ggprune.help_all"] = True
    return [f"## {title}", "", "```text", command.get_help(context).rstrip(), "```", ""]


if __name__ == "__main__":
    (HERE / "cli.md").write_text(reference(), encoding="utf-8")
    print(f"wrote {HERE / 'cli.md'}", file=sys.stderr)
