"""``ggprune traces``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import note, print_json, progress_bar, table
from ggprune.cli.values import MODEL
from ggprune.llama.options import RunOptions


@click.command("traces", cls=Sectioned)
@click.argument("model", type=MODEL)
@click.argument("tasks")
@options.output("Name of the JSON Lines file of conversations.", required=True)
@click.option(
    "--check",
    type=shlex.split,
    metavar="COMMAND",
    help="Checks the answer on its standard input, in place of what TASKS say: exit code 0 is "
    "right. $GGPRUNE_TASK names a JSON file, the row. No shell.",
)
@click.option(
    "--check-seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time for one check.",
)
@options.answering(
    "Longest answer; what does not end by then is not kept.", "Tasks answered at the same time."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="For the answers.")
@options.of(RunOptions)
@options.force
@options.json
@options.quiet
def command(model: Path, tasks: str, output: Path, as_json: bool, **arguments: Any) -> None:
    """Let MODEL answer TASKS, and keep the answers that are right, as text to calibrate on.

    TASKS is a file of rows: conversations with an answer to compare with (a number, a word, a
    tool call), "pattern" (a regular expression) or "schema" (of JSON). The model answers by its
    own sampling settings; the check sees the answer without the thinking, the file keeps both.

    Ctrl-C keeps what was answered in OUTPUT.partial; the same command continues from there.
    """
    from ggprune.api import stages

    given = options.grouped(arguments, options=RunOptions)
    found = stages.traces(model, tasks, output, **given, progress=progress_bar)
    classes = found["classes"]
    if as_json:
        print_json({"classes": classes, "tokens": found["tokens"]})
    else:
        rows = [[name, *map(str, counts.values())] for name, counts in classes.items()]
        click.echo(table(rows, header=["class", *next(iter(classes.values()))]))
    name = next(iter(classes)) if len(classes) == 1 else "NAME"
    note(f"  -> ggprune calibrate {model} --text {name}={output} -o STATS.gguf")
