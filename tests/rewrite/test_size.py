"""The size of a result is known exactly before its experts are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggprune.errors import InputError, UnsupportedModelError
from ggprune.gguf_file import write_files
from ggprune.model import MoeModel, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import plan_rewrite, result_files, result_size
from tests.support.tiny import write_tiny


def drawn(model: MoeModel, keep: int, **fields: object) -> Plan:
    """A plan of experts drawn at random, as many in each group."""
    random = np.random.default_rng(keep)
    size, stay = model.experts // model.counts.groups, keep // model.counts.groups
    layers = {
        layer: LayerPlan(
            tuple(
                sorted(
                    int(group * size + expert)
                    for group in range(model.counts.groups)
                    for expert in random.permutation(size)[:stay]
                )
            )
        )
        for layer in model.moe_layers
    }
    return Plan(keep, layers, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["qwen3moe", "bailingmoe2", "glm4moe", "gpt-oss"])
@pytest.mark.parametrize("mtp", ["prune", "drop"])
@pytest.mark.parametrize("split", [None, 300_000])
def test_the_size_is_that_of_the_files(
    tmp_path: Path, architecture: str, mtp: str, split: int | None
) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", architecture))
    for keep in (model.counts.least, model.experts):
        for used in (None, model.experts_used, 1):
            plan = drawn(model, keep, method="drawn", experts_used=used)
            options = {"mtp": mtp, "split_max_size": split}
            rewrite = plan_rewrite(model, plan, tmp_path / "o.gguf", **options)
            write_files(rewrite.files, model.gguf, force=True)
            written = {file.path: file.path.stat().st_size for file in rewrite.files}
            asked = {"method": "drawn", "experts_used": used, **options}
            files = result_files(model, keep, tmp_path / "o.gguf", **asked)
            assert {file.path: file.size for file in files} == written
            assert result_size(model, keep, **asked) == sum(written.values())


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe"))
    with pytest.raises(InputError, match="at least"):
        result_size(model, 1)
    with pytest.raises(InputError, match="mtp=maybe"):
        result_size(model, 8, mtp="maybe")
    with pytest.raises(InputError, match="99"):
        result_size(model, 8, experts_used=99)
    maverick = open_model(write_tiny(tmp_path / "l.gguf", "llama4", experts=160))
    with pytest.raises(InputError, match=r"keep=128: .*exactly 128"):
        result_size(maverick, 128)
    with pytest.raises(UnsupportedModelError, match="weighs the adjugate expert"):
        open_model(write_tiny(tmp_path / "g.gguf", "grovemoe"))
