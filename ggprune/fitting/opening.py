"""Opening what a job of fitting names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ggprune.fitting import kinds
from ggprune.fitting.hint import work_folder
from ggprune.fitting.job import Job
from ggprune.fitting.study import Study
from ggprune.llama.devices import physical_memory
from ggprune.llama.options import QuantizeOptions
from ggprune.model import MoeModel, open_model
from ggprune.quantization.quantize import Quantizer
from ggprune.types import Progress

log = logging.getLogger(__name__)

#: A source whose tensors are quantized to fewer bits than this has lost something already.
_LOW_BITS = 7.0
#: A file that takes more of the memory than this is not run if it need not be.
_SHARE_OF_MEMORY = 0.7


@contextmanager
def open_study(job: Job) -> Iterator[Study]:
    """Open everything that a job names; shards of candidates are removed at the end.

    Raises:
        GgpruneError: a file or a text cannot be used.
    """
    texts = job.texts()
    with ExitStack() as stack:
        source = stack.enter_context(open_model(job.model))
        work = job.work or work_folder(job.model)
        path = job.reference or _made_reference(source, work, job.progress)
        reference = stack.enter_context(open_model(path)) if path else None
        _warn_of_low_bits(source)
        study = Study(job, source, texts, work, reference)
        stack.callback(study.shards.clear)
        yield stack.enter_context(study)


def _made_reference(source: MoeModel, work: Path, progress: Progress) -> Path | None:
    """Name a Q8_0 to run in place of an unquantized source that does not fit into memory."""
    memory = physical_memory()
    unquantized = all(kinds.is_unquantized(tensor) for tensor in source.gguf.tensors)
    if not (unquantized and memory and source.gguf.size > _SHARE_OF_MEMORY * memory):
        return None
    log.info("%s is not run: a Q8_0 made of it is the reference", source.gguf.path)
    quantizer = Quantizer(source.gguf, QuantizeOptions(), work, stem="reference")
    path = quantizer.paths("Q8_0")[0]
    if not path.exists():
        with progress(quantizer.source_bytes, "quantizing the reference", "B") as advance:
            quantizer.run("Q8_0", progress=advance)
    return path


def _warn_of_low_bits(source: MoeModel) -> None:
    tensors = source.gguf.tensors
    low = [t for t in tensors if 0 < kinds.bits_of(t) < _LOW_BITS]
    share = sum(t.nbytes for t in low) / max(sum(t.nbytes for t in tensors), 1)
    if share > 0.5:
        log.warning(
            "%s: %.0f %% of it has fewer than %.0f bits a weight already: what that rounded away "
            "stays lost, the divergence below is from this file, and quantizing again rounds the "
            "rounded values. Start from BF16, F16 or Q8_0 where you can",
            source.gguf.path,
            100 * share,
            _LOW_BITS,
        )
