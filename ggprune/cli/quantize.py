"""``ggprune quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli import options
from ggprune.cli.terminal import in_options, print_json, progress_bar, table
from ggprune.cli.values import FILE, MODEL
from ggprune.llama.options import QuantizeOptions
from ggprune.util import human_size

if TYPE_CHECKING:
    from ggprune.quantization.forecast import Forecast


@click.command("quantize")
@click.argument("model_and_types", nargs=-1, required=True, metavar="[MODEL] TYPE...")
@click.option("-o", "--output", type=FILE, help="Folder for the results; default: beside MODEL.")
@click.option(
    "--from-plan", "plan", type=FILE, metavar="PLAN", help="Prune --source by this plan first."
)
@click.option("--source", type=MODEL, help="With --from-plan: the BF16, F16 or F32 model.")
@click.option("--tmp", type=FILE, help="With --from-plan: folder for the file in between.")
@options.mtp
@options.of(QuantizeOptions)
@click.option("--dry-run", is_flag=True, help="Only show what sizes would come out.")
@options.force
@options.json
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log too.")
@options.quiet
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model_and_types: tuple[str, ...],
    source: Path | None,
    verbose: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Quantize MODEL to each TYPE with llama.cpp's quantizer: Q8_0 Q5_K_M Q4_K_M IQ3_XXS …

    Results are named like the model, with the type in place of the old one. A type that fails
    does not keep the others from being made; the exit code tells.

    \b
    ggprune quantize Model-BF16.gguf Q8_0 Q4_K_M
    ggprune quantize --from-plan PLAN.json --source Model-BF16.gguf Q4_K_M
    """
    from ggprune.api import quantizing
    from ggprune.cli.main import fail

    if (arguments["plan"] is None) != (source is None):
        raise click.UsageError("--from-plan PLAN and --source MODEL go together.")
    types = model_and_types if source else model_and_types[1:]
    if not types:
        raise click.UsageError("Missing TYPE, for instance Q4_K_M.")
    done, errors = quantizing.quantize(
        source or MODEL(model_and_types[0]),
        types,
        **options.grouped(arguments, options=QuantizeOptions),
        lines=_log if verbose else lambda _: None,
        progress=progress_bar,
    )
    if as_json:
        results = [_as_json(result) for result in done]
        print_json({"results": results, "errors": {name: e.message for name, e in errors.items()}})
    elif done:
        rows = [[each.type, human_size(each.size), str(each.paths[0])] for each in done]
        click.echo(table(rows, header=["type", "size", "file"]))
    for name, error in list(errors.items())[:-1]:
        text = f"Error: {name}: {error.message}\n  -> {error.remedy}"
        click.echo(in_options(text, ctx.command), err=True)
    if errors:
        fail(list(errors.values())[-1], ctx.command)


def _log(line: str) -> None:
    click.echo(line, err=True)


def _as_json(result: Forecast) -> dict[str, Any]:
    return {
        "type": result.type,
        "size": result.size,
        "files": [str(path) for path in result.paths],
        "tensor_types": result.tensor_types,
        "fallbacks": result.fallbacks,
        "needs_imatrix": result.needs_imatrix,
    }
