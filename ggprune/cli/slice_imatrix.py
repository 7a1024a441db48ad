"""``ggprune slice-imatrix``."""

from __future__ import annotations

from pathlib import Path

import click

from ggprune.cli import options
from ggprune.cli.values import FILE


@click.command("slice-imatrix")
@click.argument("imatrix", type=FILE)
@click.option("--plan", type=FILE, required=True, help="The plan that the model was pruned by.")
@options.output("The importance matrix of the pruned model.", required=True)
@options.force
def command(imatrix: Path, plan: Path, output: Path, force: bool) -> None:
    """Cut IMATRIX, made for a full model, to the experts that a plan keeps.

    Reads llama.cpp's GGUF format and its older .dat, and writes the format it read.
    """
    from ggprune.gguf_file import check_targets
    from ggprune.plan import Plan
    from ggprune.quantization.imatrix import Imatrix

    check_targets([output], 0, force=force)
    Imatrix.load(imatrix).sliced(Plan.load(plan), str(imatrix)).save(output)
    click.echo(str(output))
