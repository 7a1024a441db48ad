"""``ggprune plan``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli.common import (
    FILE,
    NAMED_PATH,
    force_option,
    json_option,
    note,
    output_option,
    print_json,
    progress_bar,
    run_options,
    run_options_from,
    table,
    verbosity_options,
)
from ggprune.cli.plan_options import budget_options, method_options, request_from

if TYPE_CHECKING:
    from ggprune.plan import Plan


@click.command("plan")
@click.argument("stats", type=FILE)
@budget_options
@method_options
@click.option("--model", type=FILE, help="The model, where a budget or method needs it.")
@click.option(
    "--text",
    "texts",
    type=NAMED_PATH,
    multiple=True,
    metavar="NAME=PATH",
    help="For easy-ep, shape and --rounds: the text STATS was gathered on; default: built-in.",
)
@output_option("The plan (JSON); without it, it is only shown.")
@force_option
@run_options
@json_option
@verbosity_options
def command(stats: Path, **arguments: Any) -> None:
    """Choose which experts stay, from the statistics in STATS.

    The plan says by layer which experts are kept and dropped, and what share of the experts'
    contribution is retained. `ggprune apply` writes the model from it.
    """
    from ggprune.calibration.statistics import Statistics
    from ggprune.choosing.choose import Resources, choose_plan
    from ggprune.errors import OutputError
    from ggprune.model import open_model
    from ggprune.text.load import load_texts

    output, quiet = arguments["output"], arguments["quiet"]
    options = run_options_from(arguments, verbose=arguments["verbose"])
    request = request_from(arguments)
    if output and output.exists() and not arguments["force"]:
        raise OutputError(f"{output}: exists", remedy="Use --force to replace it.")
    statistics = Statistics.load(stats)
    model = open_model(arguments["model"]) if arguments["model"] else None
    if model is not None:
        statistics.identity.check_same(model.identity(), str(stats), str(model.gguf.path))
    journal = output.with_name(output.name + ".search") if output else None
    resources = Resources(
        model=model,
        options=options,
        sources=load_texts(arguments["texts"]),
        search_sources=load_texts(arguments["search_texts"]),
        journal=journal if request.is_measured else None,
        progress=partial(progress_bar, quiet=quiet),
        say=lambda text: note(text, quiet=quiet),
    )
    plan = choose_plan(statistics, request, resources)
    if output:
        plan.save(output)
        if journal is not None:
            journal.unlink(missing_ok=True)
    if arguments["as_json"]:
        print_json(plan.as_json())
        return
    click.echo(table(summary(plan)))
    if output:
        click.echo(f"\nWrite the model:  ggprune apply MODEL.gguf {output} -o OUT.gguf")


def summary(plan: Plan) -> list[list[str]]:
    """What a plan does, as rows of a table."""
    rows = [
        ["experts", f"{plan.experts} -> {plan.keep} a layer, by {plan.method}"],
    ]
    if plan.experts_used:
        before = plan.identity.experts_used if plan.identity else 0
        rows.append(["used for a token", f"{before} -> {plan.experts_used} experts"])
    if plan.worst_retained and plan.mean_retained is not None:
        layer, share = plan.worst_retained
        rows.append(
            ["retained", f"worst {share:.2%} (layer {layer}), mean {plan.mean_retained:.2%}"]
        )
    covered = plan.settings.get("coverage")
    weights = plan.settings.get("weights", {})
    for name, value in sorted((covered or {}).items(), key=lambda item: item[1]):
        weight = f", weight {weights[name]:.2f}" if name in weights else ""
        rows.append([f"coverage of {name}", f"{value:.2%}{weight}"])
    return rows
