"""``ggprune probe``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.evaluate import print_verdict
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import note, print_json, progress_bar, table
from ggprune.cli.values import FILE, MODEL
from ggprune.llama.options import RunOptions

MODES = ("greedy", "sampled")


@click.command("probe", cls=Sectioned)
@click.argument("base", type=MODEL)
@click.argument("candidate", type=FILE)
@options.answering("Longest answer.", "Prompts answered at the same time.")
@click.option(
    "--mode",
    type=click.Choice(["both", *MODES]),
    default="both",
    show_default=True,
    help="Always the likeliest token, or the model's own sampling settings.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="For what is drawn at random.")
@options.output("Write numbers and texts as JSON, for `ggprune report`.")
@options.force
@options.of(RunOptions)
@options.json
@options.quiet
def command(
    base: Path,
    candidate: Path,
    mode: str,
    output: Path | None,
    force: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Let BASE and CANDIDATE (a plan or a GGUF file) answer the same prompts, and compare.

    The prompts ship with ggprune: short questions, code, math, philosophy, long context, tasks
    that tempt into repetition, tool calls as JSON, other languages. Loops, answers that do not
    end, length and format are compared in pairs, each with a 95 % interval and a verdict: pass,
    fail, or undecided where it takes more answers to say.
    """
    from ggprune.api import measuring
    from ggprune.evaluation.verdict import verdict
    from ggprune.gguf_file import check_targets, write_text
    from ggprune.report.summary import example_lines

    if output:
        check_targets([output], 0, force=force)
    result = measuring.probe(
        base,
        candidate,
        modes=MODES if mode == "both" else (mode,),
        **options.grouped(arguments, options=RunOptions),
        progress=progress_bar,
    )
    if output:
        write_text(output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    else:
        note("All answers are kept with -o FILE.json.")
    if as_json:
        print_json(result)
        return
    click.echo("\n".join([_report(result), "", *example_lines(result), ""]))
    print_verdict(verdict(probe=result))


def _report(result: Mapping[str, Any]) -> str:
    from ggprune.evaluation.verdict import answers_in_a_line

    blocks = []
    for mode, numbers in result["modes"].items():
        kinds = [*numbers["kinds"].items(), ("all", numbers)]
        rows = [_row(kind, part["base"], part["candidate"]) for kind, part in kinds]
        header = [mode, "n", "words", "distinct", "loops", "collapsed", "ended", "JSON"]
        blocks.append(table(rows, header=header))
    told = [f"{name}: {answers_in_a_line(mode)}" for name, mode in result["modes"].items()]
    return "\n\n".join(["Each cell: base -> candidate\n" + blocks[0], *blocks[1:], *told])


def _row(kind: str, base: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    def pair(key: str, form: str) -> str:
        if base[key] is None:
            return ""
        return f"{base[key]:{form}} -> {candidate[key]:{form}}"

    return [
        kind,
        str(base["probes"]),
        pair("mean_words", ".0f"),
        pair("distinct4", ".2f"),
        pair("loop_rate", ".0%"),
        pair("collapse_rate", ".0%"),
        pair("ended_rate", ".0%"),
        pair("json_rate", ".0%"),
    ]
