"""``ggprune report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.terminal import note, print_json
from ggprune.cli.values import FILE
from ggprune.util import check_shape, read_json

#: Bytes that a page needs at most: the libraries, and 60 layers of 512 experts.
_LARGEST = 4 << 20


@click.command("report")
@click.option(
    "--statistics",
    "--stats",
    "statistics",
    type=FILE,
    metavar="STATS",
    help="What calibrate wrote.",
)
@click.option("--plan", type=FILE, metavar="PLAN", help="What plan wrote.")
@click.option("--metadata", type=FILE, metavar="JSON", help="The drop metadata of a result.")
@click.option("--evaluation", type=FILE, metavar="JSON", help="What evaluate --json printed.")
@click.option("--sweep", type=FILE, metavar="JSON", help="What sweep wrote.")
@click.option("--probe", type=FILE, metavar="JSON", help="What probe wrote.")
@click.option("--tasks", type=FILE, metavar="JSON", help="What bench-tasks --read printed.")
@click.option("--frontier", type=FILE, metavar="JSON", help="What frontier wrote.")
@options.output("Where to write the page; default: report.html, none with --json.")
@options.force
@options.json
def command(
    statistics: Path | None,
    plan: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    **parts: Path | None,
) -> None:
    """Show what pruning cost: one HTML page, from whatever a run has left behind.

    Every part may be missing. The page needs no network and opens from the disk; the same
    numbers are printed with --json, the essential ones without.
    """
    from ggprune.calibration.statistics import Statistics
    from ggprune.gguf_file import check_targets
    from ggprune.plan import Plan
    from ggprune.report import ReportInput, build, summary_lines, write_report

    target = output or (None if as_json else Path("report.html"))
    if target:
        check_targets([target], _LARGEST, force=force)
    read: dict[str, Any] = {name: _read(path) for name, path in parts.items()}
    given = ReportInput(
        Statistics.load(statistics) if statistics else None,
        Plan.load(plan) if plan else None,
        **read,
    )
    report = write_report(target, given) if target else build(given)
    if target:
        note(f"report: {target}")
    if as_json:
        print_json(report)
    else:
        click.echo("\n".join(summary_lines(report)))


def _read(path: Path | None) -> dict[str, Any] | None:
    """Read a JSON object; None without a path."""
    if path is None:
        return None
    value = read_json(path, "what a command wrote with --json or -o")
    check_shape(value, {}, str(path))
    return dict(value)
