"""``ggprune stats``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggprune.cli.common import FILE, json_option, print_json, table

if TYPE_CHECKING:
    from ggprune.calibration.statistics import Statistics


@click.command("stats")
@click.argument("statistics", type=FILE)
@json_option
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
    import numpy as np

    total = found.total
    rows = []
    for row, layer in enumerate(found.layers):
        share = np.sort(total.contribution_sum[row])[::-1].cumsum()
        share = share / share[-1] if share[-1] else share
        tokens, count = int(total.tokens[row]), total.count[row]
        rows.append(
            [
                str(layer),
                f"{tokens:,}",
                str(int((count == 0).sum())),
                f"{count.max() / max(tokens, 1):.1%}",
                f"{share[min(7, len(share) - 1)]:.1%}",
                str(int((share < 0.8).sum()) + 1),
            ]
        )
    return rows
