"""``ggprune calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.calibration.settings import Settings
from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import note, progress_bar
from ggprune.cli.values import FILE, MODEL
from ggprune.llama.options import RunOptions
from ggprune.util import counted


@click.command("calibrate", cls=Sectioned)
@click.argument("model", type=MODEL)
@options.output("Name of the statistics file.", required=True)
@options.text()
@options.of(Settings)
@click.option(
    "--imatrix", type=FILE, help="Gather an importance matrix for `quantize` in the same pass."
)
@options.of(RunOptions)
@options.force
@options.quiet
def command(model: Path, output: Path, **arguments: Any) -> None:
    """Run MODEL over text and gather, for every expert, how often and how strongly it is used.

    Ctrl-C keeps what was gathered in OUTPUT.partial; the same command continues from there.
    """
    from ggprune.api import stages

    given = options.grouped(arguments, settings=Settings, options=RunOptions)
    statistics = stages.calibrate(model, output, **given, progress=progress_bar)
    tokens = sum(domain.tokens for domain in statistics.domains)
    domains = counted(len(statistics.domains), "domain")
    note(f"{output}: {counted(tokens, 'token')} in {domains}")
    following = f"plan {output} --keep N -o PLAN.json"
    if given["settings"].shard != (1, 1):
        following = f"merge PART… -o {output.with_name('stats.gguf')}, once all parts are there"
    note(f"  -> ggprune {following}")
