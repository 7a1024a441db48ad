"""``ggprune evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli.common import (
    FILE,
    json_option,
    note,
    print_json,
    progress_bar,
    run_options,
    run_options_from,
    table,
    text_options,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL

if TYPE_CHECKING:
    from ggprune.evaluation.candidate import Candidate
    from ggprune.evaluation.evaluator import Evaluation, Evaluator
    from ggprune.evaluation.verdict import Finding


def cache_option(command: Any) -> Any:
    """--cache."""
    option = click.option(
        "--cache",
        type=FILE,
        help="Folder for the base model's log-probabilities; default: in the user's cache.",
    )
    return option(command)


@click.command("evaluate")
@click.argument("base", type=MODEL)
@click.argument("candidate", type=FILE)
@text_options
@cache_option
@run_options
@json_option
@verbosity_options
def command(base: Path, candidate: Path, **arguments: Any) -> None:
    """Compare CANDIDATE, a plan or a GGUF file, with the model BASE.

    A plan is measured by masking: no file is written and one model is loaded. The default text is
    held-out conversations that ship with ggprune and are never used for calibration. What the base
    model says is kept in a cache, so a second candidate costs half.
    """
    from ggprune.evaluation.candidate import Candidate

    wanted = Candidate.load(candidate)
    with evaluator(base, arguments) as measured:
        warn_of_calibration_text(wanted, measured, quiet=arguments["quiet"])
        passes = 1 if measured.base_is_known else 2
        total = passes * measured.tokens
        with progress_bar(total, "evaluating", "tok", quiet=arguments["quiet"]) as done:
            measured.progress = done
            result = measure(measured, wanted)
    if arguments["as_json"]:
        print_json(result.as_json())
        return
    click.echo(_report(result.as_json()))
    print_verdict(findings(wanted, result))


def evaluator(base: Path, arguments: Mapping[str, Any]) -> Evaluator:
    """The evaluator that a command's arguments ask for.

    Raises:
        UnsupportedModelError: an embedding model, which predicts no tokens.
    """
    from ggprune.errors import UnsupportedModelError
    from ggprune.evaluation.evaluator import Evaluator
    from ggprune.evaluation.logcache import default_folder
    from ggprune.model.architectures import Kind
    from ggprune.text.load import load_texts

    rest = dict(arguments)
    options = run_options_from(rest, verbose=arguments["verbose"])
    named = arguments["texts"]
    measured = Evaluator(
        base,
        options,
        load_texts(named) if named else None,
        n_ctx=arguments["ctx"],
        max_tokens=arguments["max_tokens"],
        cache=arguments["cache"] or default_folder(),
    )
    architecture = measured.description.architecture
    if architecture is not None and architecture.kind is Kind.EMBEDDING:
        measured.close()
        raise UnsupportedModelError(
            f"{base}: is an embedding model: it predicts no tokens, so perplexity and divergence "
            "mean nothing for it",
            remedy="Compare its embeddings on the task it is used for.",
        )
    if measured.n_ctx < arguments["ctx"]:
        note(
            f"--ctx {arguments['ctx']}: the model was trained with {measured.n_ctx} tokens; "
            "that many are used",
            quiet=arguments["quiet"],
        )
    return measured


def measure(evaluator: Evaluator, candidate: Candidate) -> Evaluation:
    """Evaluate a candidate whichever it is."""
    if candidate.plan is not None:
        return evaluator.plan(candidate.plan, str(candidate.path))
    return evaluator.model(candidate.path)


def warn_of_calibration_text(
    candidate: Candidate, evaluator: Evaluator, *, quiet: bool = False
) -> None:
    """Say so if the candidate's experts were chosen on the text it is measured on."""
    seen = candidate.calibrated_on(evaluator.sources)
    if seen:
        note(
            f"Warning: {', '.join(seen)}: {candidate.path} was calibrated on this text, so the "
            "numbers flatter it. Measure on other text.",
            quiet=quiet,
        )


def findings(candidate: Candidate, result: Evaluation) -> list[Finding]:
    """What is bad."""
    from ggprune.evaluation.verdict import verdict

    return verdict(evaluation=result.as_json(), keep=candidate.keep, retained=candidate.retained)


def print_verdict(found: list[Finding], say: Callable[[str], object] = click.echo) -> None:
    """One line for each thing that is bad, one for what to try."""
    for finding in found:
        say(f"BAD: {finding.text}\n  -> {finding.remedy}")


def _report(values: Mapping[str, Any]) -> str:
    base, candidate = values["base"], values["candidate"]
    rows = [
        ["perplexity", "base " + _pm(base["ppl"], base["ppl_se"])],
        ["", "candidate " + _pm(candidate["ppl"], candidate["ppl_se"])],
        ["", "ratio " + _pm(values["ppl_ratio"], values["ppl_ratio_se"])],
        ["KL divergence", "mean " + _pm(values["kld_mean"], values["kld_se"]) + " nats a token"],
        [
            "",
            f"median {values['kld_median']:.4f}, 95 % {values['kld_p95']:.4f}, "
            f"99 % {values['kld_p99']:.4f}, max {values['kld_max']:.4f}",
        ],
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
            f"{part['kld_p99']:.4f}",
            f"{part['top1_agreement']:.2%}",
        ]
        for name, part in values["domains"].items()
    ]
    return table(rows) + "\n\n" + table(domains, header=header)


def _pm(value: float, error: float) -> str:
    return f"{value:.4f} ± {error:.4f}"
