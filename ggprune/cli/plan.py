"""``ggprune plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.choosing.request import Budget, Request
from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import print_json, progress_bar, table
from ggprune.cli.values import FILE
from ggprune.llama.options import RunOptions

if TYPE_CHECKING:
    from ggprune.plan import Plan


@click.command("plan", cls=Sectioned)
@click.argument("stats", type=FILE)
@options.of(Budget)
@options.of(Request)
@options.text(
    "search_text", "Text that plans are measured on, other than calibration's; repeatable."
)
@click.option("--model", type=FILE, help="The model, where a budget or method needs it.")
@click.option(
    "--by-layer",
    is_flag=True,
    help="Let layers keep different numbers, that of the budget on average: for apply --mask.",
)
@options.text(
    help="For easy-ep, shape and --rounds: the text STATS was gathered on; default: built-in."
)
@options.output("The plan (JSON); without it, it is only shown.")
@options.force
@options.of(RunOptions)
@options.json
@options.quiet
def command(stats: Path, output: Path | None, as_json: bool, **arguments: Any) -> None:
    """Choose which experts stay, from the statistics in STATS.

    The plan says by layer which experts are kept and dropped, and what share of the experts'
    contribution is retained. `ggprune apply` writes the model from it.
    """
    from ggprune.api import stages

    given = options.grouped(arguments, budget=Budget, request=Request, options=RunOptions)
    plan = stages.choose(stats, output, **given, progress=progress_bar)
    if as_json:
        print_json(plan.as_json())
        return
    click.echo(table(_summary(plan)))
    if output:
        mask = " --mask" * arguments["by_layer"]
        click.echo(f"\nWrite the model:  ggprune apply MODEL.gguf {output}{mask} -o OUT.gguf")


def _summary(plan: Plan) -> list[list[str]]:
    """Say what a plan does, as rows of a table."""
    fewest, most = plan.counts
    layers = "a layer" if fewest == most else f"a layer on average ({fewest} to {most})"
    rows = [["experts", f"{plan.experts} -> {plan.keep} {layers}, by {plan.method}"]]
    if plan.experts_used:
        before = plan.identity.experts_used if plan.identity else 0
        rows.append(["used for a token", f"{before} -> {plan.experts_used} experts"])
    if plan.zero_bias:
        rows.append(["router's bias", "0"])
    if plan.worst_retained and plan.mean_retained is not None:
        layer, share = plan.worst_retained
        rows.append(
            ["retained", f"worst {share:.2%} (layer {layer}), mean {plan.mean_retained:.2%}"]
        )
    weights = plan.settings.get("weights", {})
    covered = plan.settings.get("coverage") or {}
    for name, value in sorted(covered.items(), key=lambda item: item[1]):
        weight = f", weight {weights[name]:.2f}" if name in weights else ""
        rows.append([f"coverage of {name}", f"{value:.2%}{weight}"])
    return rows
