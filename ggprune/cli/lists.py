"""``ggprune lists``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.values import FILE


@click.command("lists")
@click.argument("source", type=FILE)
@click.option("--model", type=FILE, help="The model that lists are for.")
@click.option(
    "--meaning",
    type=click.Choice(["kept", "dropped", "ranked"]),
    help="What the lists hold, or shall hold.",
)
@click.option("--keep", type=click.IntRange(1), help="Experts that stay, of ranked lists.")
@options.output("The plan, or the lists (JSON).", required=True)
@options.force
def command(source: Path, output: Path, **choices: Any) -> None:
    """Make a plan of lists of experts by layer, as other tools write them, or lists of a plan.

    With --model, SOURCE is a JSON file of lists: by layer, the experts that were kept, dropped, or
    all of them, best first. Without it, SOURCE is a plan.
    """
    from ggprune.api import stages

    stages.convert_lists(source, output, **choices)
    click.echo(str(output))
