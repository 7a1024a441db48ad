"""``ggprune prune``, which is also what ``ggprune MODEL --keep N`` runs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from ggprune.cli.calibrate import generate_option
from ggprune.cli.common import (
    FILE,
    NAMED_PATH,
    SIZE,
    force_option,
    json_option,
    note,
    output_option,
    print_json,
    progress_bar,
    run_options,
    run_options_from,
    table,
    text_options,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL
from ggprune.cli.plan_options import (
    budget_options,
    method_options,
    refuse_beside_plan,
    request_from,
)
from ggprune.util import human_size


@click.command("prune")
@click.argument("model", type=MODEL)
@budget_options
@output_option("The result; default <stem>-<N>e.gguf in the current folder.")
@method_options
@text_options
@click.option(
    "--eval-text",
    "eval_texts",
    type=NAMED_PATH,
    multiple=True,
    metavar="NAME=PATH",
    help="Text to measure the result on; default: held out from the calibration text.",
)
@generate_option
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
@click.option("--modelfile", is_flag=True, help="Write an Ollama Modelfile too.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@click.option("--no-verify", is_flag=True, help="Do not compare, load and measure the result.")
@force_option
@run_options
@json_option
@verbosity_options
def command(model: Path, **arguments: Any) -> None:
    """Write MODEL with the experts that matter: calibrate, choose, rewrite, verify.

    The source is only read. Beside the result lie the statistics (so that another --keep needs no
    second calibration), the drop metadata and a report.
    """
    from ggprune.cli.prune_run import PruneRun

    if arguments["plan_path"]:
        refuse_beside_plan()
    quiet = arguments["quiet"]
    run = PruneRun(
        path=model,
        request=None if arguments["plan_path"] else request_from(arguments),
        options=run_options_from(arguments, verbose=arguments["verbose"]),
        arguments=arguments,
        bar=partial(progress_bar, quiet=quiet),
        say=partial(note, quiet=quiet),
        command_line=" ".join(["ggprune", *sys.argv[1:]]),
    )
    if arguments["dry_run"]:
        files = [{"path": str(path), "size_bytes": size} for path, size in run.dry_run()]
        if arguments["as_json"]:
            print_json({"would_write": files})
            return
        click.echo("would write:")
        click.echo(table([[str(f["path"]), human_size(int(str(f["size_bytes"])))] for f in files]))
        return
    pruned = run.run()
    lines = run.summary(pruned)
    if arguments["as_json"]:
        print_json(dict(pruned.metadata))
    else:
        click.echo("\n".join(lines))
