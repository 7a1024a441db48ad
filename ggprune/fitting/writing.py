"""A file that was found, written through llama.cpp's quantizer and checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggprune.errors import VerificationError
from ggprune.fitting import kinds
from ggprune.fitting.fit import name_of
from ggprune.fitting.measure import Score, decode_speed
from ggprune.fitting.space import Mix
from ggprune.fitting.study import Study
from ggprune.gguf_file import GgufModel, check_targets, tensor_type_name
from ggprune.llama.options import QuantizeOptions
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.quantization.quantize import Quantizer
from ggprune.quantization.source import pruned_source, temporary_folder
from ggprune.rewrite import plan_rewrite, verify_bytes


def main_type(study: Study, mix: Mix) -> str:
    """Return the file type that most bytes of a file have."""
    totals: dict[str, int] = {}
    for index, option in enumerate(mix.options):
        kind = option.types[0]
        totals[kind] = totals.get(kind, 0) + study.space.group_bytes(index, option, mix.keep)
    most = max(totals, key=totals.__getitem__)
    return kinds.FILE_TYPE_OF.get(most, most)


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written.

    Attributes:
        score: on the held-out text.
        compared: bytes found equal to those that were measured; 0 if the file itself was measured.
        speed: tokens a second that it decodes.
    """

    score: Score
    compared: int
    speed: float


def write(study: Study, mix: Mix, output: Path, *, force: bool = False) -> Written:
    """Write a file through llama.cpp's quantizer, and see that it is the one that was measured.

    Its bytes are compared with the shards that were measured; where the disk has no room for
    both, the file itself is measured.

    Raises:
        OutputError: it cannot be written.
        VerificationError: it is not what was asked for.
        LlamaError: it does not load.
    """
    size = study.space.size(mix)
    candidate: Path | None = study.shards.candidate(mix.options)
    if shutil.disk_usage(output.absolute().parent).free < 2 * study.source.gguf.size:
        study.shards.clear()
        candidate = None
    check_targets([output], size, source=study.source.gguf, force=force)
    with (
        temporary_folder(output.parent, f".{output.name}.fit") as folder,
        _prepared(study, mix, folder) as (path, imatrix),
        GgufModel(path) as gguf,
    ):
        options = QuantizeOptions(
            imatrix=imatrix, tensor_types=study.space.patterns(mix), allow_requantize=True
        )
        quantizer = Quantizer(gguf, options, folder, stem="result", imatrix_name=study.imatrix.name)
        with study.progress(quantizer.source_bytes, "writing", "B") as advance:
            made = quantizer.run(main_type(study, mix), force=True, progress=advance)
        if made.size != size:
            raise VerificationError(f"{output}: has {made.size} bytes, {size} were expected")
        compared = _compared(study, mix, candidate, made.paths[0]) if candidate else 0
        os.replace(made.paths[0], output)
    if candidate:
        score = study.measure(mix, name_of(study, mix), study.judge)
    else:
        score = study.judge.measure(f"{output.name} {mix.key}", output, output.name)
    return Written(score, compared, decode_speed(output, study.run))


def _compared(study: Study, mix: Mix, candidate: Path, result: Path) -> int:
    every = LayerPlan(tuple(range(study.source.experts)))
    plan = Plan(mix.keep, dict.fromkeys(study.source.moe_layers, every))
    if mix.keep < study.source.experts:
        plan = study.plan(mix.keep)
    with open_model(candidate) as shards, GgufModel(result) as written:
        types = {tensor.name: tensor.type for tensor in shards.gguf.tensors}
        for tensor in written.tensors:
            if tensor.type != types[tensor.name]:
                name = tensor_type_name(tensor.type)
                raise VerificationError(f"{result}: {tensor.name} is {name}, which was not asked")
        return verify_bytes(shards, plan_rewrite(shards, plan, result), written)


@contextmanager
def _prepared(study: Study, mix: Mix, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Return the source without the experts that go, and its importance matrix."""
    if mix.keep == study.source.experts:
        yield study.source.gguf.path, study.imatrix
        return
    plan = folder / "plan.json"
    study.plan(mix.keep).save(plan)
    with pruned_source(plan, study.source.gguf.path, folder, imatrix=study.imatrix) as pruned:
        assert pruned.imatrix is not None
        yield pruned.path, pruned.imatrix
