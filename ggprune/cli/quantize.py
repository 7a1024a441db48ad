"""``ggprune quantize``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli.common import (
    FILE,
    force_option,
    human_size,
    json_option,
    note,
    print_json,
    progress_bar,
    table,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL, output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ggprune.errors import GgpruneError
    from ggprune.quantization.quantize import Forecast, QuantizeOptions, Quantizer


class TensorTypePair(click.ParamType):  # type: ignore[type-arg]
    """PATTERN=TYPE, for --tensor-type."""

    name = "pattern=type"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split it at the last equals sign: patterns may have others."""
        if isinstance(value, tuple):
            return value
        pattern, _, kind = str(value).rpartition("=")
        if not pattern or not kind:
            self.fail(f"{value!r} is not PATTERN=TYPE, for instance ffn_down_exps=q6_k", param, ctx)
        return pattern, kind


@click.command("quantize")
@click.argument("model_and_types", nargs=-1, required=True, metavar="[MODEL] TYPE...")
@click.option("-o", "--output", type=FILE, help="Folder for the results; default: beside MODEL.")
@click.option("--from-plan", type=FILE, metavar="PLAN", help="Prune --source by this plan first.")
@click.option("--source", type=MODEL, help="With --from-plan: the BF16, F16 or F32 model.")
@click.option("--tmp", type=FILE, help="With --from-plan: folder for the file in between.")
@click.option("--imatrix", type=FILE, help="Importance matrix, GGUF or .dat.")
@click.option(
    "--tensor-type",
    "tensor_types",
    type=TensorTypePair(),
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Type of tensors whose name has PATTERN (a regular expression); repeatable.",
)
@click.option("--output-type", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--pure", is_flag=True, help="One type for all tensors, no mixtures.")
@click.option("--keep-split", is_flag=True, help="As many shards as the source has.")
@click.option("--allow-requantize", is_flag=True, help="From a file that is quantized already.")
@click.option("--dry-run", is_flag=True, help="Only show what sizes would come out.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Default: one a core.")
@force_option
@json_option
@verbosity_options
@click.pass_context
def command(ctx: click.Context, /, model_and_types: tuple[str, ...], **arguments: Any) -> None:
    """Quantize MODEL to each TYPE with llama.cpp's quantizer: Q8_0 Q5_K_M Q4_K_M IQ3_XXS …

    Results are named like the model, with the type in place of the old one. A type that fails
    does not keep the others from being made; the exit code tells.

    \b
    ggprune quantize Model-BF16.gguf Q8_0 Q4_K_M
    ggprune quantize --from-plan PLAN.json --source Model-BF16.gguf Q4_K_M
    """
    from ggprune.cli.main import fail

    with _source(ctx, model_and_types, arguments) as (quantizer, types):
        done, errors = _all(quantizer, types, arguments)
    if arguments["as_json"]:
        print_json({"results": done, "errors": {name: e.message for name, e in errors.items()}})
    elif done:
        rows = [[each["type"], human_size(each["size"]), each["files"][0]] for each in done]
        click.echo(table(rows, header=["type", "size", "file"]))
    for name, error in list(errors.items())[:-1]:
        note(f"Error: {name}: {error.message}\n  -> {error.remedy}")
    if errors:
        fail(list(errors.values())[-1])


@contextlib.contextmanager
def _source(
    ctx: click.Context, words: tuple[str, ...], arguments: dict[str, Any]
) -> Iterator[tuple[Quantizer, list[str]]]:
    """The file to quantize, pruned first with --from-plan, and the types."""
    from ggprune.gguf_file import GgufModel
    from ggprune.quantization.quantize import Quantizer
    from ggprune.quantization.quantize_names import file_type

    plan, source = arguments["from_plan"], arguments["source"]
    if (plan is None) != (source is None):
        raise click.UsageError("--from-plan PLAN and --source MODEL go together.")
    names = words if plan else words[1:]
    if not names:
        raise click.UsageError("Missing TYPE, for instance Q4_K_M.")
    types = list(dict.fromkeys(file_type(name) for name in names))
    model = source if plan else MODEL.convert(words[0], None, ctx)
    folder = arguments["output"] or output_folder(model)
    options, log = _options(arguments), _log(arguments["verbose"])
    if not plan:
        with GgufModel(model) as file:
            yield _told(Quantizer(file, options, folder, log=log), arguments), types
        return
    with (
        _pruned(plan, source, arguments["tmp"] or folder, arguments) as pruned,
        GgufModel(pruned.path) as file,
    ):
        quantizer = Quantizer(
            file,
            _options({**arguments, "imatrix": pruned.imatrix}),
            folder,
            stem=pruned.stem,
            imatrix_name=arguments["imatrix"] and arguments["imatrix"].name,
            log=log,
        )
        yield _told(quantizer, arguments), types


@contextlib.contextmanager
def _pruned(plan: Path, source: Path, folder: Path, arguments: dict[str, Any]) -> Iterator[Any]:
    from ggprune.quantization.quantize_source import pruned_source

    quiet = arguments["quiet"]
    with contextlib.ExitStack() as stack:
        bar: list[Any] = []

        def started(total: int) -> None:
            bar.append(stack.enter_context(progress_bar(total, "prune", "B", quiet=quiet)))

        def progress(done: int) -> None:
            bar[0](done)

        pruned = stack.enter_context(
            pruned_source(
                plan,
                source,
                folder,
                imatrix=arguments["imatrix"],
                started=started,
                progress=progress,
            )
        )
        yield pruned


def _options(arguments: dict[str, Any]) -> QuantizeOptions:
    from ggprune.quantization.quantize import QuantizeOptions

    names = (
        "imatrix",
        "tensor_types",
        "output_type",
        "token_embedding_type",
        "pure",
        "keep_split",
        "allow_requantize",
    )
    chosen = {name: arguments[name] for name in names}
    return QuantizeOptions(**chosen, threads=arguments["threads"] or 0)


def _log(verbose: bool) -> Any:
    return (lambda line: click.echo(line, err=True)) if verbose else (lambda _: None)


def _told(quantizer: Quantizer, arguments: dict[str, Any]) -> Quantizer:
    """Say what the user should know before it starts."""
    quiet = arguments["quiet"]
    share, mostly = quantizer.requantizes
    if share:
        note(
            f"Note: {share:.0%} of the source is quantized already, mostly {mostly}. What that "
            "rounded away stays lost; the same type made from BF16 is closer to the original.",
            quiet=quiet,
        )
    if quantizer.uncovered:
        note(
            f"Note: the importance matrix lacks {len(quantizer.uncovered)} of the layers' "
            f"matrices, for instance {quantizer.uncovered[0]}; they are quantized without.",
            quiet=quiet,
        )
    return quantizer


def _all(
    quantizer: Quantizer, types: list[str], arguments: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, GgpruneError]]:
    """One type after the other; what went wrong by type."""
    from ggprune.errors import GgpruneError

    done: list[dict[str, Any]] = []
    errors: dict[str, GgpruneError] = {}
    quiet = arguments["quiet"]
    for name in types:
        try:
            if arguments["dry_run"]:
                result = quantizer.forecast(name)
            else:
                total = quantizer.source_bytes
                with progress_bar(total, name, "B", quiet=quiet) as progress:
                    result = quantizer.run(name, force=arguments["force"], progress=progress)
        except GgpruneError as error:
            errors[name] = error
            continue
        _remark(result, quiet=quiet)
        done.append(_as_json(result))
    return done, errors


def _remark(result: Forecast, *, quiet: bool) -> None:
    if result.needs_imatrix:
        note(f"Note: {result.type} needs an importance matrix (--imatrix).", quiet=quiet)
    if result.fallbacks:
        note(
            f"Note: {result.type}: {result.fallbacks} tensors have rows that its blocks do not "
            "divide; llama.cpp gives them a larger type.",
            quiet=quiet,
        )
    sys.stderr.flush()


def _as_json(result: Forecast) -> dict[str, Any]:
    return {
        "type": result.type,
        "size": result.size,
        "files": [str(path) for path in result.paths],
        "tensor_types": result.tensor_types,
        "fallbacks": result.fallbacks,
        "needs_imatrix": result.needs_imatrix,
    }
