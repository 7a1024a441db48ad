"""``ggprune sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli.common import (
    FILE,
    force_option,
    human_size,
    json_option,
    note,
    output_option,
    print_json,
    progress_bar,
    run_options,
    table,
    text_options,
    verbosity_options,
)
from ggprune.cli.evaluate import cache_option, evaluator
from ggprune.cli.model_argument import MODEL

if TYPE_CHECKING:
    from ggprune.evaluation.sweep import Planner, Sweep


class CommaList(click.ParamType):  # type: ignore[type-arg]
    """Several values with commas between."""

    name = "list"

    def __init__(self, kind: type[int] | type[str]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part.strip()) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list like 64,96,112", param, ctx)


@click.command("sweep")
@click.argument("model", type=MODEL)
@click.argument("stats", type=FILE)
@click.option(
    "--keep", "keeps", type=CommaList(int), metavar="N,N,…", help="Counts; default: seven."
)
@click.option(
    "--methods",
    type=CommaList(str),
    show_default="what plan takes",
    metavar="NAME,…",
    help="How experts are chosen; random is the control.",
)
@click.option("--seed", default=0, show_default=True, help="For what is drawn at random.")
@click.option("--max-kld", type=click.FloatRange(0), help="Accept this mean KL divergence.")
@click.option("--max-ppl-ratio", type=click.FloatRange(1), help="Accept this perplexity ratio.")
@text_options
@cache_option
@output_option("Write the curve as JSON, for `ggprune report`.")
@force_option
@run_options
@json_option
@verbosity_options
def command(model: Path, stats: Path, **arguments: Any) -> None:
    """Measure how much worse MODEL gets the fewer experts stay, without writing any file.

    STATS is what `ggprune calibrate MODEL` wrote. For every count and method a plan is made and
    measured by masking: as many passes over the text as there are plans, and one for MODEL itself.
    """
    from ggprune.errors import OutputError
    from ggprune.gguf_file import write_text

    output = arguments["output"]
    if output and output.exists() and not arguments["force"]:
        raise OutputError(f"{output}: exists", remedy="Use --force to replace it.")
    result = _measure(model, stats, arguments)
    if output:
        write_text(output, json.dumps(result.as_json(), indent=1) + "\n")
    if arguments["as_json"]:
        print_json(result.as_json())
    else:
        click.echo(_report(result))


def _measure(model: Path, stats: Path, arguments: dict[str, Any]) -> Sweep:
    from ggprune.calibration.statistics import Statistics
    from ggprune.evaluation.sweep import Tolerance, default_counts, sweep

    statistics = Statistics.load(stats)
    quiet = arguments["quiet"]
    keeps = arguments["keeps"] or default_counts(statistics.identity.counts.possible())
    methods = tuple(dict.fromkeys(arguments["methods"] or [_usual(statistics)]))
    with evaluator(model, arguments) as measured:
        statistics.identity.check_same(
            measured.description.prunable().identity(), str(stats), str(model)
        )
        _warn(statistics, measured, quiet=quiet)
        passes = len(set(keeps)) * len(methods) + (0 if measured.base_is_known else 1)
        with progress_bar(passes * measured.tokens, "sweeping", "tok", quiet=quiet) as done:
            measured.progress = done
            return sweep(
                measured,
                _planner(statistics, measured.description, arguments["seed"]),
                keeps,
                methods,
                tolerance=Tolerance(arguments["max_kld"], arguments["max_ppl_ratio"]),
                settings={
                    "ctx": measured.n_ctx,
                    "tokens": measured.tokens,
                    "texts": {source.domain: source.sha256 for source in measured.sources},
                    "seed": arguments["seed"],
                },
            )


def _usual(statistics: Any) -> str:
    from ggprune.choosing.budget import Budget
    from ggprune.choosing.choose import Request, default_method

    return default_method(statistics, Request(budget=Budget(keep=1)))


def _planner(statistics: Any, model: Any, seed: int) -> Planner:
    """Plans as ``ggprune plan --method METHOD --keep N`` makes them."""
    from ggprune.choosing.budget import Budget
    from ggprune.choosing.choose import Request, Resources, choose_plan

    def plan(method: str, keep: int) -> Any:
        request = Request(budget=Budget(keep=keep), method=method, seed=seed)
        return choose_plan(statistics, request, Resources(model=model))

    return plan


def _warn(statistics: Any, measured: Any, *, quiet: bool) -> None:
    known = {part for domain in statistics.domains for part in domain.sha256.split("+")}
    seen = [source.domain for source in measured.sources if source.sha256 in known]
    if seen:
        note(
            f"Warning: {', '.join(seen)}: the statistics were gathered on this text, so the "
            "numbers flatter every plan. Measure on other text.",
            quiet=quiet,
        )


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
