"""``ggprune apply``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ggprune.cli.common import (
    FILE,
    SIZE,
    force_option,
    human_size,
    output_option,
    progress_bar,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL


@click.command("apply")
@click.argument("model", type=MODEL)
@click.argument("plan", type=FILE)
@output_option("The result; default <stem>-<N>e.gguf in the current folder.")
@click.option(
    "--mtp",
    type=click.Choice(["prune", "drop"]),
    default="prune",
    show_default=True,
    help="MTP layers: prune by a stated rule, or drop.",
)
@click.option("--split-max-size", type=SIZE, help="Write shards of at most this size: 50G.")
@click.option("--no-verify", is_flag=True, help="Do not compare the result with the source.")
@force_option
@verbosity_options
def command(
    model: Path,
    plan: Path,
    output: Path | None,
    mtp: str,
    split_max_size: int | None,
    no_verify: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write MODEL with the experts that PLAN keeps.

    PLAN may come from another quantization of the same model, or be written by hand. Nothing is
    run: this only copies bytes.
    """
    from ggprune import pipeline
    from ggprune.model import open_model
    from ggprune.plan import Plan
    from ggprune.rewrite import plan_rewrite

    chosen = Plan.load(plan)
    description = open_model(model)
    target = output or pipeline.default_result(description, chosen.keep, Path())
    rewrite = plan_rewrite(
        description,
        chosen,
        target,
        mtp=mtp,
        split_max_size=split_max_size,
        plan_name=str(plan),
    )

    bars = partial(progress_bar, quiet=quiet)
    pipeline.write(description, rewrite, bars, force=force, verify=not no_verify)
    paths = pipeline.Paths(rewrite.files[0].path, description.gguf.stem)
    pipeline.finish(description, rewrite, None, paths)
    for file in rewrite.files:
        click.echo(f"{file.path}  {human_size(file.size)}")
