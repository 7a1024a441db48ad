"""``ggprune imatrix``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import note, progress_bar
from ggprune.cli.values import MODEL
from ggprune.llama.options import RunOptions


@click.command("imatrix", cls=Sectioned)
@click.argument("model", type=MODEL)
@options.output("The importance matrix: OUT.imatrix.gguf.", required=True)
@options.text(help="Text instead of the built-in prompts; repeatable.")
@click.option("--ctx", type=click.IntRange(16), default=512, show_default=True, help="Chunk size.")
@click.option("--chunks", type=click.IntRange(1), help="Use at most so many chunks.")
@click.option("--process-output", is_flag=True, help="Take in output.weight too.")
@options.of(RunOptions)
@options.force
@options.quiet
def command(model: Path, output: Path, **arguments: Any) -> None:
    """Gather an importance matrix of MODEL for `quantize --imatrix`, as llama-imatrix does.

    All texts are joined and cut into chunks of --ctx tokens. The built-in prompts are short: for a
    model that matters give several hundred KB of text of the kind it is used for.
    """
    from ggprune.api import quantizing

    given = options.grouped(arguments, options=RunOptions)
    chunks, left_over = quantizing.imatrix(model, output, **given, progress=progress_bar)
    note(f"{chunks} chunks of {arguments['ctx']} tokens, {left_over} left over")
    click.echo(str(output))
