"""``ggprune card``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggprune.cli.model_argument import MODEL
from ggprune.cli.options import FILE, force_option, quiet_option
from ggprune.cli.terminal import note

if TYPE_CHECKING:
    from ggprune.publish.card import Card


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
@click.option("--base-model", default="", metavar="OWNER/NAME", help="The original on the Hub.")
@click.option("--license", "licence", default="", help="Instead of what the GGUF says.")
@click.option("--repo", default="", metavar="OWNER/NAME", help="Where it will be published.")
@force_option
@quiet_option
def command(
    model: Path,
    output: Path | None,
    quants: tuple[Path, ...],
    metadata: Path | None,
    evaluations: tuple[Path, ...],
    base_model: str,
    licence: str,
    repo: str,
    force: bool,
) -> None:
    """Write the model card of MODEL, or of all quantizations in the folder MODEL.

    It holds what the GGUF header, the drop metadata and evaluations say, and names what was not
    measured.
    """
    from ggprune.gguf_file import check_targets, write_text
    from ggprune.publish.card import Request, gather, render
    from ggprune.publish.upload import repository

    if repo:
        repository(repo)
    card = gather(Request((model, *quants), metadata, evaluations, base_model, licence, repo))
    text = render(card)
    _notes(card)
    if str(output) == "-":
        click.echo(text, nl=False)
        return
    target = output or (model if model.is_dir() else model.parent) / "README.md"
    check_targets([target], len(text.encode()), force=force)
    write_text(target, text)
    click.echo(str(target))


def _notes(card: Card) -> None:
    """What a person should add or check."""
    if not card.base_model:
        note("The GGUF names no original on the Hub: give --base-model OWNER/NAME.")
    elif card.base_model_from:
        note(
            f"Base model: {card.base_model}, from {card.base_model_from}; if the pruned model is "
            "not that one, give --base-model.",
        )
    if not card.licence:
        note("The GGUF states no licence: give --license.")
    if "layers" not in (card.metadata or {}):
        note("No drop metadata: the card lacks its layers (--metadata).")
    if not any(file.evaluation for file in card.files):
        recorded = (card.metadata or {}).get("evaluation")
        if not recorded:
            note("No evaluation: the card says that nothing was measured.")
