"""``ggprune lists``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ggprune.cli.options import force_option, output_option
from ggprune.cli.values import FILE

_MEANINGS = ("kept", "dropped", "ranked")


@click.command("lists")
@click.argument("source", type=FILE)
@click.option("--model", type=FILE, help="The model that lists are for.")
@click.option("--meaning", type=click.Choice(_MEANINGS), help="What the lists hold, or shall hold.")
@click.option("--keep", type=click.IntRange(1), help="Experts that stay, of ranked lists.")
@output_option("The plan, or the lists (JSON).", required=True)
@force_option
def command(
    source: Path,
    model: Path | None,
    meaning: Literal["kept", "dropped", "ranked"] | None,
    keep: int | None,
    output: Path,
    force: bool,
) -> None:
    """Make a plan of lists of experts by layer, as other tools write them, or lists of a plan.

    With --model, SOURCE is a JSON file of lists: by layer, the experts that were kept, dropped, or
    all of them, best first. Without it, SOURCE is a plan.
    """
    from ggprune.api import stages

    stages.convert_lists(source, output, model=model, meaning=meaning, keep=keep, force=force)
    click.echo(str(output))
