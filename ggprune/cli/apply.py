"""``ggprune apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.terminal import progress_bar
from ggprune.cli.values import FILE, MODEL
from ggprune.util import human_size


@click.command("apply")
@click.argument("model", type=MODEL)
@click.argument("plan", type=FILE)
@options.output("The result; default <stem>-<N>e.gguf in the current folder.")
@click.option(
    "--adapter", type=FILE, help="Write this LoRA adapter of MODEL for the pruned model instead."
)
@click.option(
    "--mask",
    is_flag=True,
    help="Write all of MODEL instead, with a selection bias by which dropped experts are never "
    "chosen; PLAN may keep a different number in each layer.",
)
@options.writing
@options.quiet
def command(adapter: Path | None, mask: bool, **arguments: Any) -> None:
    """Write MODEL with the experts that PLAN keeps.

    PLAN may come from another quantization of the same model, or be written by hand. Nothing is
    run: this only copies bytes.
    """
    from ggprune.api import applying

    if mask and adapter is not None:
        raise click.UsageError("--mask and --adapter: give one of them.")
    if adapter is not None:
        del arguments["split_max_size"], arguments["verify"]
        path = applying.apply_to_adapter(adapter=adapter, **arguments, progress=progress_bar)
        click.echo(f"{path}  {human_size(path.stat().st_size)}")
        return
    files = (
        applying.apply_mask(**arguments, progress=progress_bar)
        if mask
        else applying.apply(**arguments, progress=progress_bar).files
    )
    for path in files:
        click.echo(f"{path}  {human_size(path.stat().st_size)}")
