"""``ggprune modelfile``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggprune.cli import options
from ggprune.cli.values import FILE, MODEL, parameter


@click.command("modelfile")
@click.argument("model", type=MODEL)
@options.output("The Modelfile; default: Modelfile beside MODEL.")
@click.option("--mmproj", type=FILE, multiple=True, help="Projector of a multimodal model.")
@click.option("--adapter", "adapters", type=FILE, multiple=True, help="LoRA adapter.")
@click.option(
    "--num-ctx",
    type=click.IntRange(0),
    help="Context; default: the model's, at most 8192; 0 leaves it to Ollama.",
)
@click.option(
    "--parameter",
    "parameters",
    type=parameter,
    multiple=True,
    metavar="NAME=VALUE",
    help="Sampling setting, for instance temperature=0.7; repeatable.",
)
@click.option("--system", help="System message.")
@click.option(
    "--template",
    type=click.Choice(["auto", "go", "none"]),
    default="auto",
    show_default=True,
    help="When to write a TEMPLATE: only if needed, always (Go), never.",
)
@click.option("--create", metavar="NAME", help="Run `ollama create NAME`, or print how to.")
@options.force
def command(
    model: Path,
    output: Path | None,
    parameters: tuple[tuple[str, float | int | str], ...],
    create: str | None,
    **choices: Any,
) -> None:
    """Write the Ollama Modelfile of MODEL from what its GGUF says.

    Stop tokens, context, sampling settings, licence; a TEMPLATE only where Ollama could not use
    the model's own chat template.
    """
    from ggprune.publish import ollama

    target = output or model.with_name("Modelfile")
    path = ollama.write_modelfile(model, target, parameters=dict(parameters), **choices)
    click.echo(str(path))
    if create and not ollama.create(create, path):
        click.echo("\nOllama is not installed here; where it is, run:")
    if create or not output:
        for line in ollama.create_commands(create or model.name.removesuffix(".gguf"), path):
            click.echo(f"  {line}")
