"""``ggprune fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.calibration.settings import Settings
from ggprune.choosing.request import Budget
from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import print_json, progress_bar
from ggprune.cli.values import FILE, MODEL
from ggprune.fitting.options import FitOptions
from ggprune.llama.options import RunOptions

if TYPE_CHECKING:
    from ggprune.api.fit import Fitted
    from ggprune.fitting.job import Job

CALIBRATING = ("max_tokens", "generate")
LIMITS = ("target_size", "fit_vram", "context", "kv_type", "parallel")


def job_options(command: Any, *only: str) -> Any:
    """Add the options that say what a model is measured on and with; see job_from."""
    for option in reversed(
        (
            options.text(),
            options.text("search_text", "Text to choose on, other than --text; repeatable."),
            options.text("eval_text", "Text to judge on, other than both; repeatable."),
            click.option(
                "--reference",
                type=FILE,
                help="Another quantization of MODEL that this machine runs; default: MODEL.",
            ),
            click.option(
                "--stats",
                "statistics",
                type=FILE,
                help="Statistics of an earlier `ggprune calibrate`, in place of calibrating now; "
                "with --imatrix.",
            ),
            click.option(
                "--imatrix", type=FILE, help="Importance matrix of the calibration of --stats."
            ),
            click.option(
                "--work", type=FILE, help="Folder for what is measured; default: <stem>.fit."
            ),
            options.of(FitOptions, *only),
            options.of(Settings, *CALIBRATING),
            options.of(RunOptions),
        )
    ):
        command = option(command)
    return command


def job_from(model: Path, arguments: dict[str, Any]) -> Job:
    """Take the options of ``job_options`` out of a command's arguments."""
    from ggprune.fitting.job import Job

    settings = Settings(ctx=512, **{name: arguments[name] for name in CALIBRATING})
    more = {"model": model, "settings": settings, "progress": progress_bar}
    given = options.grouped(arguments | more, options=FitOptions, run=RunOptions, job=Job)
    job: Job = given["job"]
    return job


@click.command("fit", cls=Sectioned)
@click.argument("model", type=MODEL)
@options.of(Budget, *LIMITS)
@options.output("The result; default: <stem>-fit-<size>.gguf in the current folder.")
@job_options
@click.option(
    "--beside", type=click.IntRange(1), help="Judge MODEL pruned to so many experts as well."
)
@click.option("--dry-run", is_flag=True, help="Say what would be best, and write nothing.")
@options.force
@options.json
@options.quiet
def command(
    model: Path, output: Path | None, dry_run: bool, force: bool, as_json: bool, **arguments: Any
) -> None:
    """Write the best file of a size: how many experts, and a type for each group of tensors.

    MODEL is the best file there is of the model (BF16, F16, Q8_0). What missing experts and low
    types cost is measured on a short text, at most 60 passes, and kept in --work; the winner is
    judged on another text beside the best file of llama-quantize's own types. Where no expert
    should go, that is the answer.

    \b
    ggprune fit Model-Q8_0.gguf --target-size 14G
    ggprune fit Model-BF16.gguf --reference Model-Q8_0.gguf --fit-vram 24G --context 32k
    """
    from ggprune.api.fit import fit

    fitted = fit(
        job_from(model, arguments),
        output,
        **{name: arguments[name] for name in (*LIMITS, "beside")},
        force=force,
        dry_run=dry_run,
    )
    show(fitted, as_json)


def show(fitted: Fitted, as_json: bool) -> None:
    """Print what came of it."""
    from ggprune.api.fit import words_on

    if as_json:
        print_json(fitted.numbers)
        return
    click.echo("\n".join(words_on(fitted)))
    if fitted.path is not None:
        click.echo(f"result  {fitted.path}")
