"""``ggprune frontier``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.fit import job_from, job_options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import print_json, table
from ggprune.cli.values import MODEL, counts, size, words


def _measuring(command: Any) -> Any:
    """Give what ``fit`` is measured with, without what only fitting decides."""
    return job_options(command, "method", "held_out_tokens")


@click.command("frontier", cls=Sectioned)
@click.argument("model", type=MODEL)
@click.option(
    "--keep", "keeps", type=counts, default=(), metavar="N,N,…", help="Counts beside all experts."
)
@click.option(
    "--types",
    "grid",
    type=words,
    default=(),
    metavar="TYPE,…",
    help="llama-quantize's types; default: Q6_K to Q2_K.",
)
@click.option("--vram", type=size, help="Say what context a card of this size has room for: 24G.")
@options.output("Write the numbers as JSON, and a chart beside it as SVG.")
@_measuring
@options.force
@options.json
@options.quiet
def command(model: Path, output: Path | None, force: bool, as_json: bool, **arguments: Any) -> None:
    """Measure quality against size: MODEL in several types, with all and with fewer experts.

    Every type is quantized once and measured with each number of experts by masking; no file of
    them stays. Lines marked * are the frontier: no file that is smaller is better.
    """
    from ggprune.fitting import chart
    from ggprune.fitting.frontier import HEADER, frontier, rows_of
    from ggprune.fitting.opening import open_study
    from ggprune.gguf_file import check_targets, write_text
    from ggprune.model import open_model
    from ggprune.quantization.names import file_type

    drawing = output.with_suffix(".svg") if output else None
    if output and drawing:
        check_targets([output, drawing], 0, force=force)
    # Before calibration, which takes long.
    types = [file_type(name) for name in arguments["grid"]]
    with open_model(model) as source:
        for keep in arguments["keeps"]:
            source.counts.check(keep)
    with open_study(job_from(model, arguments)) as study:
        points = frontier(study, arguments["keeps"], types, vram=arguments["vram"])
        numbers: dict[str, Any] = {
            "format": "ggprune-frontier",
            "model": model.name,
            "experts": study.source.experts,
            "points": [point.as_json() for point in points],
        }
    if output and drawing:
        write_text(output, json.dumps(numbers, indent=1) + "\n")
        write_text(drawing, chart.svg(numbers["points"], f"{model.name}: KL divergence by size"))
    if as_json:
        print_json(numbers)
    else:
        click.echo(table(rows_of(points), header=HEADER))
