"""``ggprune calibrate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from ggprune.cli.common import (
    FILE,
    force_option,
    note,
    output_option,
    progress_bar,
    run_options,
    run_options_from,
    text_options,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL

generate_option = click.option(
    "--generate",
    type=click.IntRange(0),
    default=128,
    show_default=True,
    help="Tokens the model adds to a prompt before it is replayed; 0: none.",
)
#: How many of them at a time; `prune` has another --parallel (of --fit-vram).
_parallel_option = click.option(
    "-np",
    "--parallel",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Prompts answered at the same time.",
)


class Shard(click.ParamType):  # type: ignore[type-arg]
    """3/16."""

    name = "i/n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Split it."""
        if isinstance(value, tuple):
            return value
        number, _, count = str(value).partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return int(number), int(count)
        self.fail(f"{value!r} is not I/N with I from 1 to N, for instance 3/16", param, ctx)


@click.command("calibrate")
@click.argument("model", type=MODEL)
@output_option("Name of the statistics file.", required=True)
@text_options
@generate_option
@_parallel_option
@click.option("--seed", type=click.IntRange(0), default=0, help="For the answers.")
@click.option(
    "--shard",
    type=Shard(),
    default=(1, 1),
    metavar="I/N",
    help="Do the I-th of N equal parts only; `ggprune merge` puts them together.",
)
@click.option(
    "--imatrix",
    "imatrix_path",
    type=FILE,
    help="Gather an importance matrix for `quantize` in the same pass.",
)
@run_options
@force_option
@verbosity_options
def command(model: Path, output: Path, **arguments: Any) -> None:
    """Run MODEL over text and gather, for every expert, how often and how strongly it is used.

    Ctrl-C keeps what was gathered in OUTPUT.partial; the same command continues from there.
    """
    from ggprune.calibration.run import Run, Settings
    from ggprune.gguf_file import check_targets
    from ggprune.model import open_model
    from ggprune.quantization.importance import ImatrixObserver
    from ggprune.text.builtin import CALIBRATION
    from ggprune.text.load import load_or_builtin

    quiet = arguments["quiet"]
    named, say = arguments["texts"], partial(note, quiet=quiet)
    imatrix_path = arguments["imatrix_path"]
    imatrix = ImatrixObserver() if imatrix_path else None
    if imatrix_path:
        check_targets([imatrix_path], 0, force=arguments["force"])
    names = ("ctx", "max_tokens", "generate", "parallel", "seed", "shard")
    run = Run(
        open_model(model),
        load_or_builtin(named, CALIBRATION),
        Settings(**{name: arguments[name] for name in names}),
        run_options_from(arguments, verbose=arguments["verbose"]),
        partial(progress_bar, quiet=quiet),
        observers=[imatrix] if imatrix else [],
        say=say,
    )
    statistics = run.run_into(output, force=arguments["force"])
    tokens = sum(domain.tokens for domain in statistics.domains)
    if imatrix:
        datasets = [path for _, path in named] or ["ggprune's built-in calibration prompts"]
        imatrix.save(imatrix_path, datasets, tokens // arguments["ctx"], arguments["ctx"])
    note(f"{output}: {tokens:,} tokens in {len(statistics.domains)} domains", quiet=quiet)
    following = f"plan {output} --keep N -o PLAN.json"
    if arguments["shard"] != (1, 1):
        following = f"merge PART… -o {output.with_name('stats.gguf')}, once all parts are there"
    note(f"  -> ggprune {following}", quiet=quiet)
