"""``ggprune card``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.values import FILE, MODEL


@click.command("card")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=FILE, help="Default: README.md beside the model; - prints.")
@click.option(
    "--quant", "quants", type=FILE, multiple=True, help="Another quantization; repeatable."
)
@click.option(
    "--metadata", type=FILE, help="Drop metadata.  [default: NAME.expert_drop_metadata.json]"
)
@click.option(
    "--evaluation",
    "evaluations",
    type=FILE,
    multiple=True,
    help="What evaluate --json printed; repeatable.  [default: NAME.evaluation.json]",
)
@click.option("--base-model", metavar="OWNER/NAME", help="The original on the Hub.")
@click.option("--license", "licence", help="Instead of what the GGUF says.")
@click.option("--repo", metavar="OWNER/NAME", help="Where it will be published.")
@options.force
@options.quiet
def command(
    model: Path, output: Path | None, quants: tuple[Path, ...], force: bool, **known: Any
) -> None:
    """Write the model card of MODEL, or of all quantizations in the folder MODEL.

    It holds what the GGUF header, the drop metadata and evaluations say, and names what was not
    measured.
    """
    from ggprune.gguf_file import check_targets, write_text
    from ggprune.publish.card import gather, render
    from ggprune.publish.upload import repository

    if known["repo"]:
        repository(known["repo"])
    text = render(gather((model, *quants), **known))
    if str(output) == "-":
        click.echo(text, nl=False)
        return
    target = output or (model if model.is_dir() else model.parent) / "README.md"
    check_targets([target], len(text.encode()), force=force)
    write_text(target, text)
    click.echo(str(target))
