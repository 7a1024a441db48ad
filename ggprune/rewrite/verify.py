"""Write a result, and let it have its name only if it is what its plan says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ggprune.errors import LlamaError, VerificationError
from ggprune.gguf_file import ByteRange, GgufModel, Tensor, write_files
from ggprune.llama.memory import check_loads
from ggprune.model import MoeModel, describe
from ggprune.rewrite.slices import Rewrite
from ggprune.types import Progress, no_progress

log = logging.getLogger(__name__)

_COMPARE_CHUNK = 8 << 20


def write_result(
    model: MoeModel,
    rewrite: Rewrite,
    *,
    force: bool = False,
    verify: bool = True,
    check: Callable[[Path], object] | None = None,
    progress: Progress = no_progress,
) -> int:
    """Write a result; verified, it appears under its name only if it is right.

    Args:
        verify: compare every byte with the source, and let llama.cpp look at all shapes.
        check: a further check, called with the path of the complete result.

    Returns:
        Bytes compared; 0 without ``verify``.

    Raises:
        OutputError: it cannot be written.
        VerificationError: it does not hold what it should.
        LlamaError: llama.cpp would not load it, though it loads the source.
    """
    compared = 0

    def look(path: Path) -> None:
        nonlocal compared
        with check_result(path, rewrite) as result:
            compared = verify_bytes(model, rewrite, result.gguf)
        _check_loads(path, model)
        if check is not None:
            check(path)

    with progress(rewrite.size, "writing", "B") as advance:
        write_files(
            rewrite.files,
            model.gguf,
            progress=advance,
            force=force,
            check=look if verify else check,
        )
    return compared


def _check_loads(path: Path, source: MoeModel) -> None:
    """See that llama.cpp takes the result; where it does not take the source, that is only said."""
    try:
        check_loads(path)
    except LlamaError as error:
        try:
            check_loads(source.gguf.path)
        except LlamaError:
            log.warning("llama.cpp loads neither the source nor the result: %s", error.message)
            return
        raise


def check_result(path: Path, rewrite: Rewrite) -> MoeModel:
    """Open a written result and see that it describes itself as the plan wants.

    Raises:
        VerificationError: it does not.
    """
    model = describe(path)
    wanted = rewrite.experts, rewrite.plan.experts_used or model.experts_used
    if isinstance(model, MoeModel) and (model.experts, model.experts_used) == wanted:
        return model
    model.close()
    found = model.refusal or f"{model.experts} experts, {model.experts_used} used"
    raise VerificationError(f"{path}: the written file is not right: {found}")


def verify_bytes(model: MoeModel, rewrite: Rewrite, result: GgufModel) -> int:
    """Compare every tensor of the written file with the source's bytes.

    Reads the result through its own header, so it would notice a wrong one.

    Args:
        rewrite: what was to be written.
        result: the written file, open.

    Returns:
        Bytes compared.

    Raises:
        VerificationError: names the first tensor that differs.
    """
    originals = {tensor.name: tensor for tensor in model.gguf.tensors}
    kept = {layer: part.keep for layer, part in rewrite.plan.layers.items()}
    compared = 0
    for tensor in result.tensors:
        expected = rewrite.cut(originals[tensor.name], model, kept)
        if tensor.shape != expected.shape or tensor.nbytes != expected.nbytes:
            raise VerificationError(f"{result.path}: {tensor.name} has the shape {tensor.shape}")
        at = tensor.offset
        for part in expected.ranges:
            _compare(model.gguf, part, result, tensor, at)
            at += len(part) if isinstance(part, bytes) else part.length
        compared += tensor.nbytes
    return compared


def _compare(
    source: GgufModel, part: ByteRange | bytes, result: GgufModel, tensor: Tensor, at: int
) -> None:
    if isinstance(part, bytes):
        if result.files[tensor.shard].read(at, len(part)) != part:
            raise VerificationError(f"{result.path}: {tensor.name} was not written as computed")
        return
    for start in range(0, part.length, _COMPARE_CHUNK):
        length = min(_COMPARE_CHUNK, part.length - start)
        wanted = source.files[part.shard].read(part.offset + start, length)
        if result.files[tensor.shard].read(at + start, length) != wanted:
            raise VerificationError(
                f"{result.path}: {tensor.name} does not hold the bytes of {source.path}",
                remedy="The disk or memory may be faulty; write the file again.",
            )
