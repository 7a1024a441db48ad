"""Pruning a high-precision file only to quantize it: the file in between is temporary."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggprune.errors import MismatchError, OutputError
from ggprune.gguf_file import write_files
from ggprune.gguf_file.parts import PartFile
from ggprune.model import MoeModel, open_model
from ggprune.plan import Plan
from ggprune.quantization.imatrix import Imatrix
from ggprune.quantization.names import result_stem
from ggprune.rewrite import plan_rewrite
from ggprune.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class PrunedSource:
    """A pruned high-precision file that exists for as long as it is quantized.

    Attributes:
        path: the file.
        stem: for results: the source's name with the number of experts kept.
        imatrix: cut to the experts kept.
    """

    path: Path
    stem: str
    imatrix: Path | None


@contextlib.contextmanager
def pruned_source(
    plan_path: Path,
    source: Path,
    folder: Path,
    *,
    imatrix: Path | None = None,
    mtp: str = "prune",
    progress: Progress = no_progress,
) -> Iterator[PrunedSource]:
    """Prune a source into a temporary file; removed at the end, whatever happens.

    Args:
        plan_path: a plan made from any quantization of the same model.
        source: the high-precision file.
        folder: where the temporary file goes.
        imatrix: of the full model (then it is cut), or of the pruned one.
        mtp: see plan_rewrite.

    Raises:
        MismatchError, InputError, UnsupportedModelError, OutputError: see plan_rewrite,
            write_files.
    """
    description = open_model(source)
    with contextlib.closing(description.gguf):
        plan = Plan.load(plan_path)
        stem = f"{result_stem(description.gguf.stem)}-{plan.keep}e"
        with temporary_folder(folder, f".{stem}.pruned") as inside:
            rewrite = plan_rewrite(
                description, plan, inside / f"{stem}.gguf", mtp=mtp, plan_name=str(plan_path)
            )
            sliced = _sliced_beside(imatrix, description, rewrite.plan, inside) if imatrix else None
            with progress(rewrite.size, "prune", "B") as done:
                write_files(rewrite.files, description.gguf, progress=done)
            yield PrunedSource(rewrite.files[0].path, stem, sliced)


def _sliced_beside(path: Path, source: MoeModel, plan: Plan, folder: Path) -> Path:
    """Cut the importance matrix by the plan, if it is the full model's."""
    imatrix = Imatrix.load(path)
    try:
        imatrix.check(source.gguf.tensors, str(path), str(source.gguf.path))
    except MismatchError:
        return path  # Cut already, or of another model: quantizing will tell.
    if plan.keep == plan.experts:
        return path
    target = folder / "sliced.imatrix"
    imatrix.sliced(plan, str(path)).save(target)
    return target


@contextlib.contextmanager
def temporary_folder(folder: Path, name: str) -> Iterator[Path]:
    """Make a folder, for one run at a time; what a killed run left in it is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with PartFile(folder / name):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            try:
                yield folder / name
            finally:
                shutil.rmtree(folder / name, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written to: {error.strerror}", remedy="Give another tmp."
        ) from error
