"""``ggprune batch``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggprune.cli.common import FILE, note

if TYPE_CHECKING:
    from ggprune.batch import Outcome


@click.command("batch")
@click.argument("config", type=FILE)
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("-q", "--quiet", is_flag=True, help="Do not name the steps.")
def command(config: Path, dry_run: bool, quiet: bool) -> None:
    """Make all that CONFIG (TOML) names: prunings, quantizations, what they cost, cards.

    \b
    model = "Model-Q8_0.gguf"       # measured and pruned; with `source`, only measured
    source = "Model-BF16.gguf"      # optional: pruned and quantized instead
    keep = [96, 109]
    types = ["Q8_0", "Q4_K_M"]
    output = "release"
    imatrix = true                  # or a file; default false
    [options]                       # more options, by command
    calibrate = ["--ctx", "1024"]

    Files newer than what they are made from are left alone, so an interrupted batch continues. A
    step that fails does not stop those that do not need it.
    """
    from ggprune import batch
    from ggprune.batch_config import BatchConfig
    from ggprune.errors import GgpruneError

    todo = batch.steps(BatchConfig.load(config))
    # What would be done is the result of a dry run; otherwise it is progress.
    say = click.echo if dry_run else partial(note, quiet=quiet)
    outcome = batch.run(todo, dry_run=dry_run, say=say)
    if not dry_run:
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
        note(f"failed: {step.text}: {reason}")
    for step in outcome.blocked:
        note(f"not made: {step.outputs[0]}")
    if not outcome.made and not outcome.failed:
        note("Nothing to be done.")
