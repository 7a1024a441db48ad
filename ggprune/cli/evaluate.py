"""``ggprune evaluate``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.calibration.settings import Settings
from ggprune.cli.help import Sectioned
from ggprune.cli.model_argument import MODEL
from ggprune.cli.options import (
    Command,
    json_option,
    options_of,
    quiet_option,
    record_from,
    text_option,
)
from ggprune.cli.terminal import print_json, progress_bar, table
from ggprune.cli.values import FILE
from ggprune.llama.options import RunOptions

if TYPE_CHECKING:
    from ggprune.evaluation.verdict import Finding

_MEASURING = ("text", "ctx", "max_tokens", "cache")


def measuring_options(command: Command) -> Command:
    """Add the options that say what to measure on; see measuring_from."""
    for option in (
        options_of(RunOptions),
        click.option(
            "--cache",
            type=FILE,
            help="Folder for the base model's log-probabilities; default: in the user's cache.",
        ),
        options_of(Settings, "ctx", "max_tokens"),
        text_option(),
    ):
        command = option(command)
    return command


def measuring_from(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what they say to measuring.evaluate and measuring.sweep."""
    from ggprune.evaluation.logcache import default_folder

    chosen = {name: arguments[name] for name in _MEASURING}
    return {
        **chosen,
        "cache": chosen["cache"] or default_folder(),
        "options": record_from(RunOptions, arguments),
        "progress": progress_bar,
    }


@click.command("evaluate", cls=Sectioned)
@click.argument("base", type=MODEL)
@click.argument("candidate", type=FILE)
@measuring_options
@json_option
@quiet_option
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
