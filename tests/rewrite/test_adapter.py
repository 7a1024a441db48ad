"""A LoRA adapter of the whole model, cut to a plan: llama.cpp computes the same with both."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import ggprune
from ggprune.cli.main import cli
from ggprune.errors import FormatError, InputError, MismatchError
from ggprune.model import open_model
from ggprune.model.architectures import ARCHITECTURES
from ggprune.plan import LayerPlan, Plan
from tests.support.llama_ctypes import loaded
from tests.support.slicing import EXPERTS, KEPT, TOKENS, choose, masking, read
from tests.support.tiny import write_tiny

RANK = 4


def write_adapter(path: Path, base: Path, *, kind: str = "lora", experts: int = EXPERTS) -> Path:
    """Write factors for the router, the experts and an attention matrix of every layer."""
    name = gguf.GGUFReader(base).fields["general.architecture"].contents()
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", 8.0)
    for tensor in gguf.GGUFReader(base).tensors:
        if not tensor.name.startswith("blk.") or not tensor.name.endswith(
            ("_exps.weight", "ffn_gate_inp.weight", "attn_q.weight")
        ):
            continue
        outer = (experts,) if "_exps" in tensor.name else ()
        shape = [int(size) for size in tensor.shape]
        for factor, size in (("a", (*outer, RANK, shape[0])), ("b", (*outer, shape[1], RANK))):
            values = (0.2 * random.standard_normal(size)).astype(np.float32)
            writer.add_tensor(f"{tensor.name}.lora_{factor}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "base.gguf", "qwen3moe")


def plan_of(base: Path) -> Plan:
    with open_model(base) as model:
        kept = choose(read(base)[0])
        return Plan(KEPT, {layer: LayerPlan(tuple(kept[layer])) for layer in model.moe_layers})


@pytest.mark.llama
def test_the_pruned_model_with_the_cut_adapter_is_the_masked_one_with_the_whole(
    base: Path, tmp_path: Path
) -> None:
    plan, adapter = plan_of(base), write_adapter(tmp_path / "lora.gguf", base)
    pruned = ggprune.apply(base, plan, tmp_path / "pruned.gguf").path
    plan.save(tmp_path / "plan.json")
    arguments = [str(base), str(tmp_path / "plan.json"), "--adapter", str(adapter)]
    run = CliRunner().invoke(cli, ["apply", *arguments, "-o", str(tmp_path / "cut.gguf")])
    assert run.exit_code == 0, run.output
    dropped = {
        layer: [e for e in range(EXPERTS) if e not in part.keep]
        for layer, part in plan.layers.items()
    }
    mask, nodes = masking(base, ARCHITECTURES["qwen3moe"], dropped)
    with loaded(base) as model:
        plain = model.run(TOKENS, mask, nodes.__contains__)
        masked = model.run(TOKENS, mask, nodes.__contains__, adapter=adapter)
    with loaded(pruned) as model:
        found = model.run(TOKENS, adapter=tmp_path / "cut.gguf")
    spread = float(np.std(masked))
    assert np.abs(found - masked).max() <= 1e-4 * spread
    assert np.abs(plain - masked).max() > 1e-2 * spread, "the adapter should change something"


def test_what_is_not_of_experts_is_copied(base: Path, tmp_path: Path) -> None:
    plan, adapter = plan_of(base), write_adapter(tmp_path / "lora.gguf", base)
    cut = ggprune.apply_to_adapter(base, plan, adapter, tmp_path / "cut.gguf")
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(adapter).tensors}
    after = {tensor.name: tensor for tensor in gguf.GGUFReader(cut).tensors}
    assert list(before) == list(after)
    for name, tensor in after.items():
        keep = list(plan.layers[int(name.split(".")[1])].keep)
        sliced = "_exps" in name or name.endswith("ffn_gate_inp.weight.lora_b")
        expected = before[name].data[keep] if sliced else before[name].data
        assert np.array_equal(tensor.data, expected), name


def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    plan = plan_of(base)
    with pytest.raises(InputError, match="is not a LoRA adapter"):
        ggprune.apply_to_adapter(base, plan, base, tmp_path / "cut.gguf")
    other = write_adapter(tmp_path / "8.gguf", base, experts=8)
    with pytest.raises(MismatchError, match="not 16 experts outermost"):
        ggprune.apply_to_adapter(base, plan, other, tmp_path / "cut.gguf")
    olmoe = write_tiny(tmp_path / "olmoe.gguf", "olmoe")
    with pytest.raises(MismatchError, match="is for 'olmoe'"):
        ggprune.apply_to_adapter(
            base, plan, write_adapter(tmp_path / "o.gguf", olmoe), tmp_path / "cut.gguf"
        )
    assert not (tmp_path / "cut.gguf").exists()


def test_json_in_place_of_an_adapter(base: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan_of(base).save(plan)
    with pytest.raises(FormatError, match=r"plan\.json: .*it is JSON") as caught:
        ggprune.apply_to_adapter(base, plan, plan, tmp_path / "o.gguf")
    assert "the adapter's .gguf file" in caught.value.remedy
    with pytest.raises(FormatError) as caught:
        ggprune.apply_to_adapter(plan, plan, base, tmp_path / "o.gguf")
    assert "the model's .gguf file" in caught.value.remedy
