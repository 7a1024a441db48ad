"""``ggprune prune``, which is also what ``ggprune MODEL --keep N`` runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.calibration.settings import Settings
from ggprune.choosing.request import Budget, Request
from ggprune.cli.help import Sectioned
from ggprune.cli.model_argument import MODEL
from ggprune.cli.options import (
    given_of,
    json_option,
    options_of,
    output_option,
    quiet_option,
    record_from,
    text_option,
    writing_options,
)
from ggprune.cli.plan import request_from
from ggprune.cli.terminal import print_json, progress_bar, table
from ggprune.cli.values import FILE
from ggprune.errors import InputError
from ggprune.llama.options import RunOptions
from ggprune.util import human_size

if TYPE_CHECKING:
    from ggprune.api.pruning import Pruned


@click.command("prune", cls=Sectioned)
@click.argument("model", type=MODEL)
@options_of(Budget)
@output_option("The result; default <stem>-<N>e.gguf in the current folder.")
@options_of(Request)
@text_option(
    "search_text", "Text that plans are measured on, other than calibration's; repeatable."
)
@text_option()
@text_option(
    "eval_text",
    "Text to measure the result on; default: held out from the calibration text.",
)
@options_of(Settings, "ctx", "max_tokens", "generate", "weight")
@click.option(
    "--eval-ctx", type=click.IntRange(8), help="Context to measure with; default: as --ctx."
)
@click.option("--stats", "statistics", type=FILE, help="Use these statistics: skip calibration.")
@click.option(
    "--recalibrate",
    is_flag=True,
    help="Gather statistics again, though some lie beside the result.",
)
@click.option("--plan", type=FILE, help="Use this plan: skip scoring too.")
@writing_options
@click.option("--modelfile", is_flag=True, help="Write an Ollama Modelfile too.")
@click.option(
    "--types",
    type=click.Choice(["auto"]),
    help="With --target-size or --fit-vram: choose tensor types too, as `ggprune fit` does.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@options_of(RunOptions)
@json_option
@quiet_option
def command(model: Path, plan: Path | None, dry_run: bool, as_json: bool, **arguments: Any) -> None:
    """Write MODEL with the experts that matter: calibrate, choose, rewrite, verify.

    The source is only read. Beside the result lie the statistics (so that another --keep needs no
    second calibration), the drop metadata and a report.
    """
    from ggprune.api import pruning

    if arguments.pop("types"):
        _fit(model, plan, dry_run, as_json, arguments)
        return
    same = ("output", "mtp", "split_max_size", "force")
    asked = {
        **{name: arguments[name] for name in same},
        "plan": plan,
        "request": _request(plan, arguments),
    }
    if dry_run:
        _show_files(
            {str(file.path): file.size for file in pruning.outputs(model, **asked)}, as_json
        )
        return
    rest = (
        "statistics",
        "recalibrate",
        "text",
        "eval_text",
        "search_text",
        "eval_ctx",
        "modelfile",
        "verify",
    )
    pruned = pruning.prune(
        model,
        **asked,
        **{name: arguments[name] for name in rest},
        settings=record_from(Settings, arguments),
        options=record_from(RunOptions, arguments),
        command=" ".join(["ggprune", *sys.argv[1:]]),
        progress=progress_bar,
    )
    if as_json:
        print_json(dict(pruned.metadata))
    else:
        click.echo(_summary(pruned))
        click.echo(_otherwise(model, pruned))


def _fit(
    model: Path, plan: Path | None, dry_run: bool, as_json: bool, arguments: dict[str, Any]
) -> None:
    """Do what ``ggprune fit`` does, for its limits and texts."""
    from ggprune.cli.fit import LIMITS, show
    from ggprune.fitting.job import Job, fit_model

    if plan is not None:
        raise InputError(
            "plan: says how many experts stay, which types=auto is to find out",
            remedy="Leave out one of them.",
        )
    same = ("text", "search_text", "eval_text", "statistics")
    job = Job(
        model=model,
        **{name: arguments[name] for name in same},
        settings=record_from(Settings, arguments),
        run=record_from(RunOptions, arguments),
        progress=progress_bar,
    )
    limits = {name: arguments[name] for name in LIMITS}
    force = arguments["force"]
    fitted = fit_model(job, arguments["output"], **limits, force=force, dry_run=dry_run)
    show(fitted, as_json)


def _otherwise(model: Path, pruned: Pruned) -> str:
    """Say what the same bytes would buy."""
    from ggprune.fitting.hint import otherwise

    return otherwise(model, sum(path.stat().st_size for path in pruned.files))


def _request(plan: Path | None, arguments: dict[str, Any]) -> Request | None:
    """Return what is asked for; None beside a plan, which has decided it.

    Raises:
        InputError: options of both.
    """
    if plan is None:
        return request_from(arguments)
    if beside := given_of(Budget, Request, names=("search_text",)):
        raise InputError(
            f"{beside[0]}: a plan is given, which says which experts stay",
            remedy="Leave out one of them; `ggprune plan` makes another plan.",
        )
    return None


def _show_files(sizes: dict[str, int], as_json: bool) -> None:
    if as_json:
        files = [{"path": path, "size_bytes": size} for path, size in sizes.items()]
        print_json({"would_write": files})
        return
    click.echo("would write:")
    click.echo(table([[path, human_size(size)] for path, size in sizes.items()]))


def _summary(pruned: Pruned) -> str:
    from ggprune.model.architectures import ARCHITECTURES
    from ggprune.report.summary import summary_lines

    program = ARCHITECTURES[pruned.plan.architecture].kind.program
    checked = f"{human_size(pruned.compared)} equal the source's bytes; it loads and computes"
    files = {
        "verified": checked if pruned.compared else None,
        "result": pruned.path,
        "statistics": pruned.statistics_path,
        "metadata": pruned.metadata_path,
        "report": pruned.report_path,
        "Modelfile": pruned.modelfile_path,
    }
    return "\n".join(
        [
            *summary_lines(pruned.report or {}, 16),
            "",
            table([[name, str(text)] for name, text in files.items() if text]),
            "",
            f"Run it:  {program} -m {shlex.quote(str(pruned.path))}",
        ]
    )
