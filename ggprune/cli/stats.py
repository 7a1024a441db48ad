"""``ggprune stats``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggprune.cli import options
from ggprune.cli.terminal import print_json, table
from ggprune.cli.values import FILE

if TYPE_CHECKING:
    from ggprune.calibration.statistics import Statistics


@click.command("stats")
@click.argument("statistics", type=FILE)
@options.json
def command(statistics: Path, as_json: bool) -> None:
    """Show what a statistics file holds: model, text, and how evenly experts are used."""
    from ggprune.calibration.statistics import Statistics

    found = Statistics.load(statistics)
    if as_json:
        print_json(found.as_json())
        return
    click.echo(table(_facts(found)))
    click.echo("\n" + table(_domains(found), header=["domain", "tokens", "text (SHA-256)"]))
    click.echo("\n" + table(_layers(found), header=_HEADER))


_HEADER = ["layer", "tokens", "unused", "most routed", "top-8 share", "experts for 80 %"]


def _facts(found: Statistics) -> list[list[str]]:
    identity = found.identity
    facts = {
        "model": identity.name,
        "architecture": identity.architecture,
        "experts": f"{identity.experts} a layer, {identity.experts_used} used",
        "layers": f"{identity.layers}, {len(found.layers)} with experts",
        **{name: str(value) for name, value in found.settings.items()},
    }
    return [[name, value] for name, value in facts.items() if value]


def _domains(found: Statistics) -> list[list[str]]:
    return [[d.name, f"{d.tokens:,}", d.sha256[:16]] for d in found.domains]


def _layers(found: Statistics) -> list[list[str]]:
    """One row a layer; shares are of Σ g‖f‖, see statistics.ExpertSums."""
    from ggprune.report.concentration import experts_for, top_share

    total, rows = found.total, []
    for layer, tokens, count, contributed in zip(
        found.layers, total.tokens, total.count, total.contribution_sum, strict=True
    ):
        rows.append(
            [
                str(layer),
                f"{tokens:,}",
                str((count == 0).sum()),
                f"{count.max() * found.identity.experts_used / max(count.sum(), 1):.1%}",
                f"{top_share(contributed):.1%}",
                str(experts_for(contributed)),
            ]
        )
    return rows
