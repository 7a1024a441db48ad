"""``ggprune prune``, which is also what ``ggprune MODEL --keep N`` runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.calibration.settings import Settings
from ggprune.choosing.request import Budget, Request
from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import print_json, progress_bar, table
from ggprune.cli.values import FILE, MODEL
from ggprune.errors import InputError
from ggprune.llama.options import RunOptions
from ggprune.util import human_size

if TYPE_CHECKING:
    from ggprune.api.writing import Pruned


@click.command("prune", cls=Sectioned)
@click.argument("model", type=MODEL)
@options.of(Budget)
@options.output("The result; default <stem>-<N>e.gguf in the current folder.")
@options.of(Request)
@options.text(
    "search_text", "Text that plans are measured on, other than calibration's; repeatable."
)
@options.text()
@options.text(
    "eval_text",
    "Text to measure the result on; default: held out from the calibration text.",
)
@options.of(Settings, "ctx", "max_tokens", "generate", "weight")
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
@options.writing
@click.option(
    "--no-probe",
    "probe",
    is_flag=True,
    callback=options.negated,
    help="Do not compare short answers of both models, which takes up to a minute.",
)
@click.option("--modelfile", is_flag=True, help="Write an Ollama Modelfile too.")
@click.option(
    "--types",
    type=click.Choice(["auto"]),
    help="With --target-size or --fit-vram: choose tensor types too, as `ggprune fit` does.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@options.of(RunOptions)
@options.json
@options.quiet
def command(
    model: Path,
    plan: Path | None,
    types: str | None,
    dry_run: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Write MODEL with the experts that matter: calibrate, choose, rewrite, verify.

    The source is only read. Beside the result lie the statistics (so that another --keep needs no
    second calibration), the drop metadata and a report.
    """
    from ggprune.api import pruning

    if types:
        _fit(model, plan, dry_run, as_json, arguments)
        return
    given = options.grouped(
        arguments, budget=Budget, request=Request, settings=Settings, options=RunOptions
    )
    if plan is not None:
        _check_beside_plan()
        given["request"] = None
    if dry_run:
        same = ("output", "request", "mtp", "split_max_size", "force")
        files = pruning.outputs(model, plan=plan, **{name: given[name] for name in same})
        _show_files({str(file.path): file.size for file in files}, as_json)
        return
    line = " ".join(["ggprune", *sys.argv[1:]])
    pruned = pruning.prune(model, plan=plan, **given, command=line, progress=progress_bar)
    if as_json:
        print_json(dict(pruned.metadata))
    else:
        click.echo(_summary(pruned))
        click.echo(_otherwise(model, pruned))


def _fit(
    model: Path, plan: Path | None, dry_run: bool, as_json: bool, arguments: dict[str, Any]
) -> None:
    """Do what ``ggprune fit`` does, for its limits and texts."""
    from ggprune.api.fit import fit
    from ggprune.cli.fit import LIMITS, show
    from ggprune.fitting.job import Job

    if plan is not None:
        raise InputError(
            "plan: says how many experts stay, which types=auto is to find out",
            remedy="Leave out one of them.",
        )
    limits = {name: arguments[name] for name in (*LIMITS, "force", "output")}
    # What only choosing uses goes; its `parallel` is not calibration's.
    texts = ("text", "search_text", "eval_text", "statistics")
    given = options.grouped(arguments, budget=Budget, settings=Settings, run=RunOptions)
    job = Job(
        model=model,
        **{name: given[name] for name in (*texts, "settings", "run")},
        progress=progress_bar,
    )
    show(fit(job, dry_run=dry_run, **limits), as_json)


def _otherwise(model: Path, pruned: Pruned) -> str:
    """Say what the same bytes would buy."""
    from ggprune.fitting.hint import otherwise

    return otherwise(model, sum(path.stat().st_size for path in pruned.files))


def _check_beside_plan() -> None:
    """Raise InputError for options that say which experts stay: a plan has decided it."""
    if beside := options.given_of(Budget, Request, names=("search_text",)):
        raise InputError(
            f"{beside[0]}: a plan is given, which says which experts stay",
            remedy="Leave out one of them; `ggprune plan` makes another plan.",
        )


def _show_files(sizes: dict[str, int], as_json: bool) -> None:
    if as_json:
        files = [{"path": path, "size_bytes": size} for path, size in sizes.items()]
        print_json({"would_write": files})
        return
    click.echo("would write:")
    click.echo(table([[path, human_size(size)] for path, size in sizes.items()]))


def _summary(pruned: Pruned) -> str:
    from ggprune.model.architectures import ARCHITECTURES
    from ggprune.report.summary import example_lines, summary_lines

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
    report = pruned.report or {}
    example = example_lines(report.get("probe"))
    return "\n".join(
        [
            *summary_lines(report, 16),
            *(["", *example] if example else []),
            "",
            table([[name, str(text)] for name, text in files.items() if text]),
            "",
            f"Run it:  {program} -m {shlex.quote(str(pruned.path))}",
        ]
    )
