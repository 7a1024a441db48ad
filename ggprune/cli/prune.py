"""``ggprune prune``, which is also what ``ggprune MODEL --keep N`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli.common import (
    FILE,
    SIZE,
    force_option,
    human_size,
    json_option,
    note,
    output_option,
    print_json,
    progress_bars,
    run_options,
    run_options_from,
    table,
    text_options,
    verbosity_options,
)


@click.command("prune")
@click.argument("model", type=FILE)
@click.option("--keep", type=click.IntRange(1), help="Experts that stay in each layer.")
@output_option("The result; default <stem>-<N>e.gguf in the current folder.")
@click.option("--method", default="reap", show_default=True, help="How experts are scored.")
@click.option("--seed", default=0, show_default=True, help="For what is drawn at random.")
@text_options
@click.option(
    "--generate",
    type=click.IntRange(0),
    default=128,
    show_default=True,
    help="Tokens the model adds to each prompt before it is measured; 0: none.",
)
@click.option("--stats", "stats_path", type=FILE, help="Use these statistics: skip calibration.")
@click.option("--plan", "plan_path", type=FILE, help="Use this plan: skip scoring too.")
@click.option(
    "--mtp",
    type=click.Choice(["prune", "drop"]),
    default="prune",
    show_default=True,
    help="MTP layers: prune by a stated rule, or drop.",
)
@click.option("--split-max-size", type=SIZE, help="Write shards of at most this size: 50G.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@click.option("--no-verify", is_flag=True, help="Do not compare, load and measure the result.")
@force_option
@run_options
@json_option
@verbosity_options
def command(model: Path, **arguments: Any) -> None:
    """Write MODEL with the experts that matter: calibrate, choose, rewrite, verify.

    The source is only read. Beside the result lie the statistics, so that another --keep needs no
    second calibration (--stats), and the drop metadata.
    """
    from ggprune.cli.prune_run import PruneRun

    options = run_options_from(arguments, verbose=arguments["verbose"])
    run = PruneRun(model, options, arguments, bar=progress_bars(quiet=arguments["quiet"]))
    if arguments["dry_run"]:
        rewrite = run.dry_run()
        if arguments["as_json"]:
            files = [{"path": str(file.path), "size_bytes": file.size} for file in rewrite.files]
            print_json({"would_write": files})
            return
        click.echo("would write:")
        click.echo(table([[str(file.path), human_size(file.size)] for file in rewrite.files]))
        return
    pruned = run.run(lambda text: note(text, quiet=arguments["quiet"]))
    if arguments["as_json"]:
        print_json(dict(pruned.metadata))
        return
    click.echo(table(run.summary(pruned)))
    click.echo(f"\nTry it:  {run.try_command(pruned)}")
