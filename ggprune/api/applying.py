"""``apply``: from a plan to a file; nothing is run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ggprune.api.inputs import plan_of
from ggprune.api.writing import Pruned, Writing, described
from ggprune.gguf_file import GgufModel, instead_of_a_model, write_files
from ggprune.model import open_model
from ggprune.plan import Plan
from ggprune.rewrite import plan_adapter, plan_rewrite, write_result
from ggprune.types import Progress, log_progress


def apply(
    model: str | Path,
    plan: Plan | str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = log_progress,
) -> Pruned:
    """Write a model with the experts that a plan keeps, and its drop metadata; nothing is run.

    Args:
        model: the GGUF file, or any shard; any quantization of the plan's model.
        plan: which experts stay, or the plan's file.
        output: the result; None for ``<stem>-<keep>e.gguf`` in the current folder.
        mtp: ``prune`` the MTP layers by a stated rule, or ``drop`` them.
        split_max_size: bytes of one shard; None for one file.
        force: replace existing files.
        verify: compare every byte with the source afterwards.
        progress: shows how far it is.

    Raises:
        GgpruneError: the plan does not fit, or the result cannot be written.
    """
    chosen, name = plan_of(plan)
    writing = Writing(output, mtp, split_max_size, force, verify)
    with open_model(model) as source:
        return described(source, writing.write(source, chosen, name, progress))


def apply_mask(
    model: str | Path,
    plan: Plan | str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = log_progress,
) -> tuple[Path, ...]:
    """Write a copy of a model that computes what the pruned one does, with all experts in it.

    Its selection bias keeps the dropped experts from being chosen, so the plan may keep a different
    number in each layer.

    Args:
        model, plan, mtp, split_max_size, force, verify, progress: see :func:`apply`.
        output: the result; None for ``<stem>-masked.gguf`` in the current folder.

    Returns:
        The files written.

    Raises:
        UnsupportedModelError: the model has no selection bias, or one that cannot mask.
        GgpruneError: the plan does not fit, or the result cannot be written.
    """
    chosen, name = plan_of(plan)
    with open_model(model) as source:
        target = Path(output or f"{source.gguf.stem}-masked.gguf")
        rewrite = plan_rewrite(
            source,
            chosen,
            target,
            mtp=mtp,
            split_max_size=split_max_size,
            mask=True,
            plan_name=name,
        )
        write_result(source, rewrite, force=force, verify=verify, progress=progress)
    return tuple(file.path for file in rewrite.files)


def apply_to_adapter(
    model: str | Path,
    plan: Plan | str | Path,
    adapter: str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    force: bool = False,
    progress: Progress = log_progress,
) -> Path:
    """Cut a LoRA adapter of the whole model to the experts that a plan keeps.

    Args:
        model: the whole model, any quantization; only its header and routers are read.
        plan: which experts stay, or the plan's file.
        adapter: the LoRA adapter, a GGUF file.
        output: the result; None for ``<adapter>-<keep>e.gguf`` in the current folder.
        mtp: as the model is to be written, see :func:`apply`.
        force: replace an existing file.
        progress: shows how far it is.

    Returns:
        The file written.

    Raises:
        GgpruneError: the plan or the adapter does not fit the model.
    """
    chosen, name = plan_of(plan)
    target = Path(output or f"{Path(adapter).stem}-{chosen.keep}e.gguf")
    give = "Give the adapter's .gguf file; llama.cpp's convert_lora_to_gguf.py makes one."
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_model(model))
        with instead_of_a_model(give):
            factors = stack.enter_context(GgufModel(Path(adapter)))
        rewrite = plan_rewrite(source, chosen, target, mtp=mtp, plan_name=name)
        files = plan_adapter(factors, source, rewrite.plan, target)
        with progress(files[0].size, "writing", "B") as done:
            write_files(files, factors, progress=done, force=force)
    return target
