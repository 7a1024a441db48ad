"""``ggprune probe``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli.common import (
    FILE,
    force_option,
    json_option,
    note,
    output_option,
    print_json,
    progress_bar,
    run_options,
    run_options_from,
    table,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL

if TYPE_CHECKING:
    from ggprune.evaluation.candidate import Candidate
    from ggprune.evaluation.probe import Answer
    from ggprune.llama.options import RunOptions
    from ggprune.model import Model
    from ggprune.plan import Plan

MODES = ("greedy", "sampled")


@click.command("probe")
@click.argument("base", type=MODEL)
@click.argument("candidate", type=FILE)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "-np",
    "--parallel",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Prompts answered at the same time.",
)
@click.option(
    "--mode",
    type=click.Choice(["both", *MODES]),
    default="both",
    show_default=True,
    help="Always the likeliest token, or the model's own sampling settings.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="For what is drawn at random.")
@output_option("Write numbers and texts as JSON, for `ggprune report`.")
@force_option
@run_options
@json_option
@verbosity_options
def command(base: Path, candidate: Path, **arguments: Any) -> None:
    """Let BASE and CANDIDATE (a plan or a GGUF file) answer the same prompts, and compare.

    The prompts ship with ggprune: code, math, philosophy, long context, tasks that tempt into
    repetition, tool calls as JSON, other languages. What is counted: words, distinct 4-grams,
    loops, collapses, answers that end by themselves, JSON that parses.
    """
    from ggprune.errors import OutputError
    from ggprune.evaluation.candidate import Candidate
    from ggprune.evaluation.verdict import verdict
    from ggprune.gguf_file import write_text

    output = arguments["output"]
    if output and output.exists() and not arguments["force"]:
        raise OutputError(f"{output}: exists", remedy="Use --force to replace it.")
    result = _run(base, Candidate.load(candidate), arguments)
    if output:
        write_text(output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    else:
        note("The answers themselves are kept with -o FILE.json.", quiet=arguments["quiet"])
    if arguments["as_json"]:
        print_json(result)
        return
    click.echo(_report(result))
    for finding in verdict(probe=result):
        click.echo(f"BAD: {finding.text}\n  -> {finding.remedy}")


def _run(base: Path, candidate: Candidate, arguments: dict[str, Any]) -> dict[str, Any]:
    from ggprune.calibration.generate import Sampling
    from ggprune.evaluation.probe import (
        GREEDY,
        SAMPLED,
        answer_all,
        builtin_probes,
        own_sampling,
        side_by_side,
    )
    from ggprune.model import describe

    options = run_options_from(arguments, verbose=arguments["verbose"])
    probes = builtin_probes()
    model = describe(base)
    plan = (
        candidate.plan.for_model(model.prunable(), str(candidate.path)) if candidate.plan else None
    )
    own = replace(own_sampling(model.gguf), seed=arguments["seed"])
    every = {GREEDY: Sampling(), SAMPLED: own}
    modes = {name: how for name, how in every.items() if arguments["mode"] in ("both", name)}
    most = 2 * len(modes) * len(probes) * arguments["max_tokens"]
    with progress_bar(most, "generating at most", "tok", quiet=arguments["quiet"]) as done:
        settings = {"max_tokens": arguments["max_tokens"], "parallel": arguments["parallel"]}
        ask = partial(answer_all, probes=probes, modes=modes, progress=done, **settings)
        both = _both(model, candidate.path, plan, options, ask)
    return side_by_side(
        probes,
        *both,
        names=(base.name, candidate.path.name),
        settings=settings,
        modes=modes,
    )


def _both(
    model: Model,
    candidate: Path,
    plan: Plan | None,
    options: RunOptions,
    ask: Callable[..., dict[str, list[Answer]]],
) -> tuple[dict[str, list[Answer]], dict[str, list[Answer]]]:
    """Answers of both sides; one model is loaded at a time, a plan needs no other."""
    from ggprune.evaluation.masking import MaskObserver, dropped_by
    from ggprune.llama.session import LlamaModel

    observers = [MaskObserver(model.prunable().architecture, dropped_by(plan))] if plan else []
    overrides = model.prunable().overrides(plan.experts_used) if plan else {}
    with LlamaModel(model.gguf.path, options) as llama:
        base = ask(llama)
        if plan is not None and not overrides:
            return base, ask(llama, observers=observers)
    path = candidate if plan is None else model.gguf.path
    with LlamaModel(path, options, overrides=overrides) as llama:
        return base, ask(llama, observers=observers)


def _report(result: Mapping[str, Any]) -> str:
    blocks = []
    for mode, numbers in result["modes"].items():
        kinds = [*numbers["kinds"].items(), ("all", numbers)]
        rows = [_row(kind, part["base"], part["candidate"]) for kind, part in kinds]
        header = [mode, "n", "words", "distinct", "loops", "collapsed", "ended", "JSON"]
        blocks.append(table(rows, header=header))
    return "Each cell: base -> candidate\n" + "\n\n".join(blocks)


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
