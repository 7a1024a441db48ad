"""The stages after pruning: importance matrices and quantized files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ggprune.api.inputs import Text, datasets_of, pairs_of
from ggprune.errors import GgpruneError
from ggprune.gguf_file import GgufModel, check_targets
from ggprune.hub.client import output_folder
from ggprune.llama.options import QuantizeOptions, RunOptions
from ggprune.llama.session import LlamaModel
from ggprune.quantization import importance
from ggprune.quantization.forecast import Forecast
from ggprune.quantization.names import file_type
from ggprune.quantization.quantize import Quantizer
from ggprune.quantization.source import pruned_source
from ggprune.text.builtin import CALIBRATION
from ggprune.text.load import load_or_builtin
from ggprune.types import Progress, log_progress

log = logging.getLogger(__name__)


def imatrix(
    model: str | Path,
    output: str | Path,
    *,
    text: Text = (),
    ctx: int = 512,
    chunks: int | None = None,
    process_output: bool = False,
    options: RunOptions | None = None,
    force: bool = False,
    progress: Progress = log_progress,
) -> tuple[int, int]:
    """Gather an importance matrix for quantizing, as llama-imatrix does.

    Args:
        model: the GGUF file, or any shard.
        output: the importance matrix.
        text: by domain; none for the built-in prompts.
        ctx: tokens in a chunk.
        chunks: use at most so many; None for all.
        process_output: take in ``output.weight`` too.
        options: how llama.cpp runs the model.
        force: replace an existing file.
        progress: shows how far it is.

    Returns:
        Chunks that were run, and tokens left over.
    """
    named = pairs_of(text)
    sources = load_or_builtin(named, CALIBRATION)
    with GgufModel(Path(model)) as file:
        check_targets([Path(output)], 0, source=file, force=force)
        template = file.get("tokenizer.chat_template")
    with LlamaModel(Path(model), options or RunOptions()) as llama:
        tokens = importance.joined_tokens(llama, template, sources)
        most = min(len(tokens) // ctx, chunks or len(tokens))
        with progress(most * ctx, "imatrix", "tok") as done:
            observer, count = importance.gather(
                llama, tokens, n_ctx=ctx, chunks=chunks, head=process_output, progress=done
            )
    observer.save(Path(output), datasets_of(named), count, ctx)
    return count, len(tokens) % ctx


def quantize(
    model: str | Path,
    types: Sequence[str],
    output: str | Path | None = None,
    *,
    plan: str | Path | None = None,
    tmp: str | Path | None = None,
    mtp: str = "prune",
    options: QuantizeOptions | None = None,
    dry_run: bool = False,
    force: bool = False,
    lines: Callable[[str], object] = lambda _: None,
    progress: Progress = log_progress,
) -> tuple[list[Forecast], dict[str, GgpruneError]]:
    """Quantize a model to each of several types; with a plan, prune it first.

    Args:
        model: the GGUF file, or any shard; with a plan, the BF16, F16 or F32 model.
        types: names of llama.cpp's types, for instance ``Q4_K_M``.
        output: folder for the results; None for that of the model.
        plan: a plan's file: the model is pruned by it first.
        tmp: folder for the pruned file in between; None for ``output``.
        mtp: with a plan, ``prune`` the MTP layers by a stated rule, or ``drop`` them.
        options: importance matrix, types of single tensors.
        dry_run: only find out what would come out.
        force: replace existing files.
        lines: receives the quantizer's own log, line by line.
        progress: shows how far it is.

    Returns:
        What came out, and by type what went wrong: a type that fails does not keep the others from
        being made.

    Raises:
        GgpruneError: nothing can be made of this model like this.
    """
    names = list(dict.fromkeys(file_type(name) for name in types))
    options, path = options or QuantizeOptions(), Path(model)
    folder = Path(output) if output else output_folder(path)
    matrix, stem = options.imatrix, None
    done: list[Forecast] = []
    errors: dict[str, GgpruneError] = {}
    with contextlib.ExitStack() as stack:
        if plan is not None:
            inside = Path(tmp) if tmp else folder
            pruned = stack.enter_context(
                pruned_source(Path(plan), path, inside, imatrix=matrix, mtp=mtp, progress=progress)
            )
            path, stem, options = pruned.path, pruned.stem, replace(options, imatrix=pruned.imatrix)
        file = stack.enter_context(GgufModel(path))
        named = matrix.name if matrix else None
        quantizer = Quantizer(file, options, folder, stem=stem, imatrix_name=named, log=lines)
        for note in quantizer.cautions:
            log.info("Note: %s", note)
        for name in names:
            try:
                if dry_run:
                    result = quantizer.forecast(name)
                else:
                    with progress(quantizer.source_bytes, name, "B") as advance:
                        result = quantizer.run(name, force=force, progress=advance)
            except GgpruneError as error:
                errors[name] = error
                continue
            for note in result.cautions:
                log.info("Note: %s", note)
            done.append(result)
    return done, errors
