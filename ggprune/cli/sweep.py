"""``ggprune sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli import options
from ggprune.cli.evaluate import measuring_from, measuring_options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import print_json, table
from ggprune.cli.values import FILE, MODEL, counts, words
from ggprune.util import human_size

if TYPE_CHECKING:
    from ggprune.evaluation.sweep import Sweep


@click.command("sweep", cls=Sectioned)
@click.argument("model", type=MODEL)
@click.argument("stats", type=FILE)
@click.option(
    "--keep", "keeps", type=counts, default=(), metavar="N,N,…", help="Counts; default: seven."
)
@click.option(
    "--methods",
    "--method",
    "methods",
    type=words,
    default=(),
    show_default="what plan takes",
    metavar="NAME,…",
    help="How experts are chosen; random is the control.",
)
@click.option("--seed", default=0, show_default=True, help="For what is drawn at random.")
@click.option("--max-kld", type=click.FloatRange(0), help="Accept this mean KL divergence.")
@click.option("--max-ppl-ratio", type=click.FloatRange(1), help="Accept this perplexity ratio.")
@measuring_options
@options.output("Write the curve as JSON, for `ggprune report`.")
@options.force
@options.json
@options.quiet
def command(
    model: Path, stats: Path, output: Path | None, force: bool, as_json: bool, **arguments: Any
) -> None:
    """Measure how much worse MODEL gets the fewer experts stay, without writing any file.

    STATS is what `ggprune calibrate MODEL` wrote. For every count and method a plan is made and
    measured by masking: as many passes over the text as there are plans, and one for MODEL itself.
    """
    from ggprune.api import measuring
    from ggprune.evaluation.sweep import Tolerance
    from ggprune.gguf_file import check_targets, write_text

    if output:
        check_targets([output], 0, force=force)
    result = measuring.sweep(model, stats, **measuring_from(arguments, tolerance=Tolerance))
    if output:
        write_text(output, json.dumps(result.as_json(), indent=1) + "\n")
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(_report(result))


def _report(result: Sweep) -> str:
    rows = []
    for method in result.methods:
        cliff, smallest = result.cliff(method), result.smallest(method)
        for point in result.of(method):
            total = point.evaluation.total
            marks = ["cliff below" if point.keep == cliff else ""]
            marks.append("smallest within the tolerance" if point.keep == smallest else "")
            rows.append(
                [
                    method,
                    str(point.keep),
                    human_size(point.size),
                    f"{abs(total.kld_mean):.4f}",
                    f"{total.kld_p99:.4f}",
                    f"{total.ppl_ratio:.4f}",
                    f"{total.top1_agreement:.2%}",
                    ", ".join(mark for mark in marks if mark),
                ]
            )
    header = ["method", "keep", "size", "KL", "KL 99 %", "ppl ratio", "same top", ""]
    lines = [table(rows, header=header)]
    if result.tolerance.given and not any(map(result.smallest, result.methods)):
        lines.append("No count measured is within the tolerance: try more experts.")
    return "\n".join(lines)
