"""Fewer experts used in files that leave the width of the experts to llama.cpp.

Where ``expert_feed_forward_length`` is missing, many architectures divide ``feed_forward_length``
by the experts used, so that another number used would be another width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggprune.errors import InputError, LlamaError
from ggprune.gguf_file import (
    GgufModel,
    KeyEdits,
    OutputFile,
    TypedValue,
    ValueType,
    lay_out,
    whole,
    write_files,
)
from ggprune.llama.memory import check_loads
from ggprune.model import MoeModel, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import plan_rewrite, write_result
from tests.support.llama_ctypes import loaded
from tests.support.slicing import TOKENS
from tests.support.tiny import write_tiny

#: The architectures of which llama.cpp derives the width, read in its src/models; without those
#: whose tiny model has dense layers, or a number of experts used for every layer.
DERIVING = [
    "llada-moe", "qwen2moe", "qwen35moe", "qwen3moe", "qwen3next", "qwen3vlmoe", "qwen4exp",
    "rnd1",
]  # fmt: skip


def without_width(path: Path, target: Path, *keys: str) -> Path:
    """The same model, with the length that llama.cpp divides in place of the experts' width."""
    with GgufModel(path) as model:
        name = model.get("general.architecture")
        used = model.get(f"{name}.expert_used_count")
        down = next(t for t in model.tensors if t.name.endswith("ffn_down_exps.weight"))
        length = TypedValue(ValueType.UINT32, down.shape[0] * used)
        edits = KeyEdits(
            {f"{name}.feed_forward_length": length},
            frozenset(f"{name}.{key}" for key in ("expert_feed_forward_length", *keys)),
        )
        write_files(lay_out(target, model, edits, [*map(whole, model.tensors)]), model)
    return target


def everything(model: MoeModel, experts_used: int) -> Plan:
    stay = LayerPlan(tuple(range(model.experts)))
    return Plan(model.experts, dict.fromkeys(model.moe_layers, stay), experts_used=experts_used)


def logits(path: Path, overrides: dict[str, int] | None = None) -> np.ndarray:
    with loaded(path, overrides=overrides) as model:
        return model.run(TOKENS)


@pytest.mark.llama
@pytest.mark.parametrize("name", DERIVING)
def test_the_written_file_loads_and_computes_the_same(tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", name, mtp=0)
    derived = without_width(path, tmp_path / "d.gguf")
    check_loads(derived)
    with open_model(derived) as model:
        plan = everything(model, model.experts_used - 1)
        write_result(model, plan_rewrite(model, plan, tmp_path / "o.gguf"))
        prefix, used = model.architecture.name, model.experts_used - 1
        expected = logits(path, {f"{prefix}.expert_used_count": used})
        np.testing.assert_array_equal(logits(tmp_path / "o.gguf"), expected)
        np.testing.assert_array_equal(logits(derived, model.overrides(used)), expected)


@pytest.mark.llama
def test_a_mask_cannot_stand_in_for_the_file_beside_dense_layers(tmp_path: Path) -> None:
    """Shared experts of qwen2moe are as wide as the length says."""
    path = write_tiny(tmp_path / "m.gguf", "qwen2moe")
    shared = "expert_shared_feed_forward_length"
    with open_model(without_width(path, tmp_path / "d.gguf", shared)) as model:
        assert model.overrides(None) == {}
        with pytest.raises(InputError, match="only be measured on a written file"):
            model.overrides(2)


@pytest.mark.llama
def test_the_key_is_written_only_where_it_is_missing(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    key = "qwen3moe.expert_feed_forward_length"
    with open_model(without_width(path, tmp_path / "d.gguf")) as model:
        for used, expected in ((model.experts_used, False), (2, True)):
            rewrite = plan_rewrite(model, everything(model, used), tmp_path / f"{used}.gguf")
            write_result(model, rewrite)
            with GgufModel(tmp_path / f"{used}.gguf") as result:
                assert (key in result.keys) == expected


@pytest.mark.llama
def test_a_result_that_llama_cpp_does_not_take_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = without_width(write_tiny(tmp_path / "m.gguf", "qwen3moe"), tmp_path / "d.gguf")
    monkeypatch.setattr(MoeModel, "keys_for", lambda _, used: {"expert_used_count": used})
    with open_model(path) as model:
        rewrite = plan_rewrite(model, everything(model, 2), tmp_path / "o.gguf")
        assert all(isinstance(file, OutputFile) for file in rewrite.files)
        with pytest.raises(LlamaError, match="cannot load"):
            write_result(model, rewrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.gguf", "m.gguf"]


@pytest.mark.llama
def test_a_source_that_llama_cpp_does_not_take_can_be_pruned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be of another version of llama.cpp."""
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    with GgufModel(path) as whole_model:
        edits = KeyEdits(removed=frozenset({"qwen3moe.context_length"}))
        tensors = [*map(whole, whole_model.tensors)]
        write_files(lay_out(tmp_path / "n.gguf", whole_model, edits, tensors), whole_model)
    with open_model(tmp_path / "n.gguf") as model:
        rewrite = plan_rewrite(model, everything(model, 2), tmp_path / "o.gguf")
        assert write_result(model, rewrite) > 0
    assert "loads neither the source nor the result" in caplog.text
