"""``ggprune imatrix``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli.common import (
    NAMED_PATH,
    force_option,
    note,
    output_option,
    progress_bar,
    run_options,
    run_options_from,
    verbosity_options,
)
from ggprune.cli.model_argument import MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggprune.llama.session import LlamaModel
    from ggprune.text.documents import Source


@click.command("imatrix")
@click.argument("model", type=MODEL)
@output_option("The importance matrix: OUT.imatrix.gguf.", required=True)
@click.option(
    "--text",
    "texts",
    type=NAMED_PATH,
    multiple=True,
    metavar="NAME=PATH",
    help="Text instead of the built-in prompts; repeatable.",
)
@click.option("--ctx", type=click.IntRange(16), default=512, show_default=True, help="Chunk size.")
@click.option("--chunks", type=click.IntRange(1), help="Use at most so many chunks.")
@click.option("--process-output", is_flag=True, help="Take in output.weight too.")
@run_options
@force_option
@verbosity_options
def command(model: Path, output: Path, **arguments: Any) -> None:
    """Gather an importance matrix of MODEL for `quantize --imatrix`, as llama-imatrix does.

    All texts are joined and cut into chunks of --ctx tokens. The built-in prompts are short: for a
    model that matters give several hundred KB of text of the kind it is used for.
    """
    from ggprune.gguf_file import GgufModel, check_targets
    from ggprune.llama.session import LlamaModel
    from ggprune.quantization.importance import gather
    from ggprune.text.builtin import CALIBRATION
    from ggprune.text.load import load_or_builtin

    quiet, n_ctx, named = arguments["quiet"], arguments["ctx"], arguments["texts"]
    options = run_options_from(arguments, verbose=arguments["verbose"])
    sources = load_or_builtin(named, CALIBRATION)
    with GgufModel(model) as file:
        check_targets([output], 0, source=file, force=arguments["force"])
        template = file.get("tokenizer.chat_template")
    with LlamaModel(model, options) as llama:
        tokens = _tokens(llama, template, sources)
        chunks = min(len(tokens) // n_ctx, arguments["chunks"] or len(tokens))
        with progress_bar(chunks * n_ctx, "imatrix", "tok", quiet=quiet) as progress:
            observer, done = gather(
                llama,
                tokens,
                n_ctx=n_ctx,
                chunks=arguments["chunks"],
                head=arguments["process_output"],
                progress=progress,
            )
    datasets = [path for _, path in named] or ["ggprune's built-in calibration prompts"]
    observer.save(output, datasets, done, n_ctx)
    note(f"{done} chunks of {n_ctx} tokens, {len(tokens) % n_ctx} left over", quiet=quiet)
    click.echo(str(output))


def _tokens(llama: LlamaModel, template: str | None, sources: Sequence[Source]) -> list[int]:
    from ggprune.text.chat import template_of, tokenize

    chat = template_of(llama, template)
    tokens: list[int] = []
    for source in sources:
        for document in source.documents:
            # llama.cpp's tools drop the newline that a file ends with.
            text = document.text.removesuffix("\n")
            tokens += tokenize(llama, chat, replace(document, text=text))
    return tokens
