"""``ggprune batch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.batch_config import BatchConfig
from ggprune.cli import options
from ggprune.cli.terminal import note
from ggprune.cli.values import FILE, more_options

if TYPE_CHECKING:
    from ggprune.batch import Outcome


@click.command("batch")
@click.argument("config", type=FILE, required=False)
@options.of(BatchConfig)
@click.option(
    "--options",
    type=more_options,
    multiple=True,
    metavar='"COMMAND OPTION…"',
    help='More options for a command: "calibrate --ctx 1024"; repeatable.',
)
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@options.quiet
def command(config: Path | None, dry_run: bool, **arguments: Any) -> None:
    """Make all that CONFIG (TOML) or options name: prunings, quantizations, their cost, cards.

    \b
    model = "Model-Q8_0.gguf"       # measured and pruned; with `source`, only measured
    source = "Model-BF16.gguf"      # optional: pruned and quantized instead
    keep = [96, 109]                # without: only the model is quantized
    types = ["Q8_0", "Q4_K_M"]
    output = "release"
    imatrix = true                  # or a file; default false
    [options]                       # more options, by command
    calibrate = ["--ctx", "1024"]

    Files newer than what they are made from are left alone, so an interrupted batch continues. A
    step that fails does not stop those that do not need it.
    """
    from ggprune import batch
    from ggprune.errors import GgpruneError

    beside = options.given_of(BatchConfig, names=("options",))
    if config and beside:
        raise click.UsageError(f"{beside[0]}: CONFIG says what is to be made; leave out one.")
    if not config and not arguments["model"]:
        raise click.UsageError("Give CONFIG, or --model MODEL with --keep or --types.")
    arguments["options"] = dict(arguments["options"])
    wanted = BatchConfig.load(config) if config else BatchConfig(**arguments)
    batch.check_counts(wanted)
    todo = batch.steps(wanted)
    outcome = batch.run(todo, dry_run=dry_run)
    if dry_run:
        for step in outcome.made:
            click.echo(step.text)
        return
    _show(outcome)
    if outcome.failed:
        first = next(iter(outcome.failed))
        raise GgpruneError(
            f"{len(outcome.failed)} of {len(todo)} steps failed, {len(outcome.blocked)} more need "
            f"what they should have made; first: {first.text}",
            remedy="Correct it and run the same command again: what is done stays.",
        )


def _show(outcome: Outcome) -> None:
    for step in outcome.made:
        for path in step.outputs:
            click.echo(str(path))
    for step, reason in outcome.failed.items():
        click.echo(f"failed: {step.text}: {reason}", err=True)
    for step in outcome.blocked:
        click.echo(f"not made: {step.outputs[0]}", err=True)
    if not outcome.made and not outcome.failed:
        note("Nothing to be done.")
