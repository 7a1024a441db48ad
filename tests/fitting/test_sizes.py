"""Sizes are exact before anything is written, and what is written is llama-quantize's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggprune.fitting.requantize import Requantizer
from ggprune.fitting.shards import Shards
from ggprune.fitting.space import Mix, Space
from ggprune.fitting.writing import main_type, write
from ggprune.gguf_file import GgufModel, lay_out, whole, write_files
from ggprune.gguf_file import KeyEdits as Edits
from ggprune.llama.options import QuantizeOptions, RunOptions
from ggprune.llama.quantizer import quantize
from ggprune.model import MoeModel, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.quantization.imatrix import Entry, Imatrix
from ggprune.quantization.quantize import Quantizer
from ggprune.rewrite import plan_rewrite
from ggprune.types import no_progress
from tests.support.tiny import write_tiny

#: Name, what is written, experts kept of 16 (8 are Mixtral to llama-quantize).
CASES = {
    "plain": ("qwen3moe", {}, 12),
    "quantized": ("qwen3moe", {"dtype": "Q8_0"}, 12),
    "all experts": ("qwen3moe", {"dtype": "F16"}, 16),
    "eight": ("llama", {}, 8),
    "MTP": ("glm4moe", {}, 12),
    "a dense layer and MLA": ("deepseek2", {}, 8),
    "fused gate and up": ("gemma4", {}, 12),
}


def study_of(path: Path, folder: Path, keep: int) -> Any:
    """What writing needs of a study: nothing is run."""
    model = open_model(path)
    random = np.random.default_rng(3)
    entries = {}
    for tensor in model.gguf.tensors:
        if len(tensor.shape) > 1 and tensor.name.startswith("blk."):
            matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            sums = random.lognormal(0, 2, (matrices, tensor.shape[0])).astype(np.float32)
            entries[tensor.name] = Entry(sums, np.ones(matrices, np.float32))
    imatrix = folder / "imatrix.gguf"
    Imatrix(entries, ("some text",), 5, 64).save(imatrix)
    options = QuantizeOptions(imatrix=imatrix, allow_requantize=True)
    quantizer = Quantizer(model.gguf, options, folder, imatrix_name=imatrix.name)
    plan = Plan(
        keep,
        {layer: LayerPlan(tuple(range(16 - keep, 16))) for layer in model.moe_layers},
        method="by hand",
    )
    space = Space(
        model,
        folder,
        groups=8,
        covered=entries,
        imatrix=imatrix,
        notes=quantizer.notes,
        method="by hand",
    )
    means = {name: entry.means() for name, entry in entries.items()}
    return SimpleNamespace(
        source=model,
        space=space,
        imatrix=imatrix,
        requantizer=Requantizer(model.gguf, means, 2),
        shards=Shards(space, Requantizer(model.gguf, means, 2), folder / "work"),
        plan=lambda _: plan.for_model(model),
        progress=no_progress,
        judge=SimpleNamespace(measure=lambda *_: None),
        measure=lambda *_: None,
        run=RunOptions(threads=1),
    )


def a_mix(space: Space, keep: int) -> Mix:
    """Another option for every group."""
    options = [each[index % len(each)] for index, each in enumerate(space.options)]
    return Mix(keep, tuple(options))


@pytest.mark.process
@pytest.mark.parametrize("case", CASES)
def test_the_size_is_known_and_the_bytes_are_those_of_llama_quantize(
    case: str, tmp_path: Path
) -> None:
    architecture, settings, keep = CASES[case]
    source = write_tiny(tmp_path / "Tiny.gguf", architecture, seed=1, **settings)
    study = study_of(source, tmp_path, keep)
    mix = a_mix(study.space, keep)
    result = tmp_path / "result.gguf"
    write(study, mix, result)
    assert result.stat().st_size == study.space.size(mix)
    assert list(tmp_path.glob(".*")) == []
    assert result.read_bytes() == by_hand(study, mix, tmp_path).read_bytes()


def by_hand(study: Any, mix: Mix, folder: Path) -> Path:
    """Prune, cut the importance matrix, and run llama.cpp's quantizer with --tensor-type."""
    model: MoeModel = study.source
    pruned, imatrix = model.gguf.path, study.imatrix
    if mix.keep < model.experts:
        pruned, plan = folder / "pruned.gguf", study.plan(mix.keep)
        rewrite = plan_rewrite(model, plan, pruned)
        write_files(rewrite.files, model.gguf)
        imatrix = folder / "cut.gguf"
        Imatrix.load(study.imatrix).sliced(rewrite.plan).save(imatrix)
    notes: dict[str, str | int] = {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "some text",
        "quantize.imatrix.entries_count": len(Imatrix.load(imatrix).entries),
        "quantize.imatrix.chunks_count": 5,
    }
    options = QuantizeOptions(tensor_types=study.space.patterns(mix), allow_requantize=True)
    quantize(
        pruned,
        folder / "by-hand.gguf",
        main_type(study, mix),
        options,
        lambda _: None,
        imatrix={n: e.means() for n, e in Imatrix.load(imatrix).entries.items()},
        notes=notes,
    )
    return folder / "by-hand.gguf"


@pytest.mark.process
def test_a_source_in_shards(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "whole.gguf", "qwen3moe", seed=1)
    with GgufModel(path) as gguf:
        files = lay_out(
            tmp_path / "Split.gguf",
            gguf,
            Edits(),
            [whole(t) for t in gguf.tensors],
            split_max_size=1 << 18,
        )
        write_files(files, gguf)
    assert len(files) > 2
    study = study_of(files[0].path, tmp_path, 12)
    mix = a_mix(study.space, 12)
    write(study, mix, tmp_path / "result.gguf")
    assert (tmp_path / "result.gguf").stat().st_size == study.space.size(mix)


@pytest.mark.process
def test_a_type_of_llama_quantize_has_its_size(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1)
    study = study_of(source, tmp_path, 16)
    for type_name in ("Q4_K_M", "IQ4_XS", "Q2_K"):
        options = QuantizeOptions(imatrix=study.imatrix)
        quantizer = Quantizer(
            study.source.gguf, options, tmp_path / "types", imatrix_name="imatrix.gguf"
        )
        made = quantizer.run(type_name)
        assert study.space.size(study.space.of_file_type(type_name, 16)) == made.size


@pytest.mark.process
def test_shards_make_room_for_each_other(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1)
    study = study_of(source, tmp_path, 16)
    base = study.space.base
    room = study.space.size(base) + (64 << 10)
    shards = Shards(study.space, study.requantizer, tmp_path / "small", room)
    first = shards.candidate(base.options)
    with GgufModel(first) as model:
        names = {tensor.name for tensor in model.tensors}
    for options in (a_mix(study.space, 16).options, base.options):
        with GgufModel(shards.candidate(options)) as model:
            assert {tensor.name for tensor in model.tensors} == names
    kept = sum(path.stat().st_size for path in (tmp_path / "small" / "shards").iterdir())
    assert kept <= room


@pytest.mark.process
def test_a_mixture_of_llama_quantize_is_written_as_it_is_there(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1)
    study = study_of(source, tmp_path, 16)
    mix = study.space.of_file_type("Q2_K", 16)
    write(study, mix, tmp_path / "result.gguf")
    made = Quantizer(
        study.source.gguf,
        QuantizeOptions(imatrix=study.imatrix),
        tmp_path / "types",
        imatrix_name="imatrix.gguf",
    ).run("Q2_K")
    with GgufModel(tmp_path / "result.gguf") as ours, GgufModel(made.paths[0]) as theirs:
        assert [(t.name, t.type) for t in ours.tensors] == [
            (t.name, t.type) for t in theirs.tensors
        ]
        for one, other in zip(ours.tensors, theirs.tensors, strict=True):
            assert ours.read(one) == theirs.read(other)
