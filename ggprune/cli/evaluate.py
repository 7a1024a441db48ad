"""``ggprune evaluate``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.calibration.settings import Settings
from ggprune.cli import options
from ggprune.cli.help import Sectioned
from ggprune.cli.terminal import print_json, progress_bar, table
from ggprune.cli.values import FILE, MODEL
from ggprune.llama.options import RunOptions

if TYPE_CHECKING:
    from ggprune.evaluation.verdict import Finding


def measuring_options(command: options.Command) -> options.Command:
    """Add the options that say what to measure on; see measuring_from."""
    for option in (
        options.of(RunOptions),
        click.option(
            "--cache",
            type=FILE,
            help="Folder for the base model's log-probabilities; default: in the user's cache.",
        ),
        options.of(Settings, "ctx", "max_tokens"),
        options.text(),
    ):
        command = option(command)
    return command


def measuring_from(arguments: Mapping[str, Any], **records: type) -> dict[str, Any]:
    """Return what they say to measuring.evaluate and measuring.sweep; see options.grouped."""
    from ggprune.evaluation.logcache import default_folder

    given = options.grouped(arguments, options=RunOptions, **records)
    return {**given, "cache": given["cache"] or default_folder(), "progress": progress_bar}


@click.command("evaluate", cls=Sectioned)
@click.argument("base", type=MODEL)
@click.argument("candidate", type=FILE)
@measuring_options
@options.json
@options.quiet
def command(base: Path, candidate: Path, as_json: bool, **arguments: Any) -> None:
    """Compare CANDIDATE, a plan or a GGUF file, with the model BASE.

    A plan is measured by masking: no file is written and one model is loaded. The default text is
    held-out conversations that ship with ggprune and are never used for calibration. What the base
    model says is kept in a cache, so a second candidate costs half.
    """
    from ggprune.api import measuring
    from ggprune.evaluation.candidate import Candidate
    from ggprune.evaluation.verdict import verdict

    measured = Candidate.load(candidate)
    result = measuring.evaluate(base, measured, **measuring_from(arguments)).as_json()
    if as_json:
        print_json(result)
        return
    click.echo(_report(result))
    print_verdict(verdict(evaluation=result, keep=measured.keep, retained=measured.retained))


def print_verdict(findings: Iterable[Finding]) -> None:
    """Print one line for each thing that is bad, and one for what to try."""
    for finding in findings:
        click.echo(f"BAD: {finding.text}\n  -> {finding.remedy}")


def _report(values: Mapping[str, Any]) -> str:
    from ggprune.evaluation.verdict import scale

    base, candidate = values["base"], values["candidate"]
    rows = [
        ["perplexity", "base " + _pm(base["ppl"], base["ppl_se"])],
        ["", "candidate " + _pm(candidate["ppl"], candidate["ppl_se"])],
        ["", "ratio " + _pm(values["ppl_ratio"], values["ppl_ratio_se"])],
        ["KL divergence", "mean " + _pm(values["kld_mean"], values["kld_se"]) + " nats a token"],
        [
            "",
            f"median {_number(values['kld_median'])}, 95 % {_number(values['kld_p95'])}, "
            f"99 % {_number(values['kld_p99'])}, max {_number(values['kld_max'])}",
        ],
        ["for scale", scale(values["kld_mean"])],
        ["same top token", f"{values['top1_agreement']:.2%}"],
        ["overlap", f"{values['overlap']:.2%} of the probability"],
        ["tokens", f"{values['tokens']:,} scored"],
    ]
    header = ["domain", "tokens", "ratio", "KL", "KL 99 %", "same top"]
    domains = [
        [
            name,
            f"{part['tokens']:,}",
            f"{part['ppl_ratio']:.4f}",
            f"{abs(part['kld_mean']):.4f}",
            _number(part["kld_p99"]),
            f"{part['top1_agreement']:.2%}",
        ]
        for name, part in values["domains"].items()
    ]
    return table(rows) + "\n\n" + table(domains, header=header)


def _pm(value: float, error: float) -> str:
    return f"{_number(value)} ± {error:.4f}"


def _number(value: float) -> str:
    """Round to four digits; what rounding of the logits leaves below zero is 0.0000."""
    return f"{round(value, 4) + 0.0:.4f}"
