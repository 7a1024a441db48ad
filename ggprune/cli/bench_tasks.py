"""``ggprune bench-tasks``."""

from __future__ import annotations

from pathlib import Path

import click

from ggprune.cli import options
from ggprune.cli.terminal import print_json, table
from ggprune.cli.values import FILE
from ggprune.evaluation.bench_tasks import Settings


@click.command("bench-tasks")
@click.argument("base", type=FILE, required=False)
@click.argument("candidate", type=FILE, required=False)
@options.output("Folder for the script and what it will write.")
@click.option("--read", "results", type=FILE, help="Read the results in this folder instead.")
@options.of(Settings)
@options.force
@options.json
def command(
    base: Path | None,
    candidate: Path | None,
    output: Path | None,
    results: Path | None,
    force: bool,
    as_json: bool,
    **settings: int,
) -> None:
    """Write the commands that benchmark BASE and CANDIDATE (GGUF files); read their results.

    The script starts llama-server and runs lm-evaluation-harness: GPQA Diamond with chain of
    thought, GSM8K and seven MMLU subjects, with the same settings for both. It takes hours, and
    ggprune does not run it.
    """
    from ggprune.errors import InputError, OutputError
    from ggprune.evaluation.bench_tasks import read_results, scores, script
    from ggprune.evaluation.candidate import Candidate
    from ggprune.gguf_file import write_text

    if results:
        found = read_results(results)
        if as_json:
            print_json(found)
        else:
            header = ["task", "base", "candidate", "change"]
            click.echo(table(scores(found["tasks"]), header=header))
        return
    if not (base and candidate and output):
        raise InputError(
            "bench-tasks needs BASE, CANDIDATE and -o FOLDER, or --read FOLDER",
            remedy="ggprune bench-tasks BASE.gguf PRUNED.gguf -o bench",
        )
    for model in (base, candidate):
        if Candidate.load(model).plan is not None:
            raise InputError(
                f"{model}: is a plan, and a server needs a model",
                remedy=f"ggprune apply MODEL.gguf {model} -o PRUNED.gguf",
            )
    path = output / "run.sh"
    if path.exists() and not force:
        raise OutputError(f"{path}: exists", remedy="Use --force to replace it.")
    output.mkdir(parents=True, exist_ok=True)
    text = script(base.resolve(), candidate.resolve(), output.resolve(), Settings(**settings))
    write_text(path, text)
    path.chmod(path.stat().st_mode | 0o111)
    if as_json:
        print_json({"script": str(path)})
    else:
        click.echo(text)
        click.echo(f"Run it:  sh {path}", err=True)
