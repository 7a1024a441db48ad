"""Which files are of one model: what rounding, renaming and other weights change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
from ggprune.errors import MismatchError
from ggprune.gguf_file import GgufModel, tensor_type_name
from ggprune.llama.options import QuantizeOptions
from ggprune.model import Identity, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.quantization.imatrix import Entry, Imatrix
from ggprune.quantization.quantize import Quantizer
from tests.support import tiny
from tests.support.tiny import write_tiny

Change = Callable[[str, np.ndarray], np.ndarray]


def changed(path: Path, target: Path, change: Change, rename: bool = False) -> Path:
    """The same model with some tensors changed; F16 arrays are stored as F16."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            if rename and name == "tokenizer.ggml.tokens":
                value = [*value[:-1], "<|PAD_TOKEN|>"]
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, change(tensor.name, np.array(tensor.data)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def identity(path: Path) -> Identity:
    with open_model(path) as model:
        return model.identity()


def same(_name: str, data: np.ndarray) -> np.ndarray:
    return data


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Routers of BF16 values, as models are trained."""

    def bf16(name: str, data: np.ndarray) -> np.ndarray:
        if "gate_inp" not in name:
            return data
        return ((data.view(np.uint32) >> 16) << 16).view(np.float32)

    plain = write_tiny(tmp_path / "plain.gguf", "qwen3moe", experts=32, layers=2)
    return changed(plain, tmp_path / "m.gguf", bf16)


@pytest.mark.parametrize("rounding", ["F16", "BF16 of F32"])
def test_a_rounded_router_is_the_same(tmp_path: Path, model: Path, rounding: str) -> None:
    random = np.random.default_rng(0)

    def rounded(name: str, data: np.ndarray) -> np.ndarray:
        if "gate_inp" not in name:
            return data
        if rounding == "F16":
            return data.astype(np.float16)
        return data * (1 + random.uniform(-1, 1, data.shape).astype(np.float32) / 512)

    other = identity(changed(model, tmp_path / "o.gguf", rounded))
    known = identity(model)
    # F16 has no room for the smallest BF16 values, so the hashes may differ.
    known.check_same(replace(other, router="0" * 64), "a", "b")
    with pytest.raises(MismatchError, match="router is"):
        replace(known, router_sketch="").check_same(replace(other, router="0" * 64), "a", "b")


@pytest.mark.parametrize("expert", [False, True], ids=["all", "one expert"])
def test_another_router_is_another_model(tmp_path: Path, model: Path, expert: bool) -> None:
    random = np.random.default_rng(0)

    def other(name: str, data: np.ndarray) -> np.ndarray:
        if "gate_inp" not in name:
            return data
        fresh = random.normal(0, data.std(), data.shape).astype(np.float32)
        return np.concatenate([fresh[:1], data[1:]]) if expert else fresh

    found = identity(changed(model, tmp_path / "o.gguf", other))
    with pytest.raises(MismatchError, match="router is"):
        identity(model).check_same(found, "a", "b")


def dead(name: str, data: np.ndarray) -> np.ndarray:
    if "_exps" not in name:
        return data
    data[:8] = 0
    return data


def fresh(name: str, data: np.ndarray) -> np.ndarray:
    if "_exps" not in name:
        return data
    return np.random.default_rng(5).normal(0, data.std(), data.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "difference"),
    [(dead, "of 64 experts looked at, 16 are zero"), (fresh, r"experts differ \(correlation -?0")],
)
def test_experts_tell_models_of_one_router_apart(
    tmp_path: Path, model: Path, change: Change, difference: str
) -> None:
    found = identity(changed(model, tmp_path / "o.gguf", change))
    assert found.router == identity(model).router
    for one, other in ((found, identity(model)), (identity(model), found)):
        with pytest.raises(MismatchError, match=difference):
            one.check_same(other, "a", "b")
    # Files of before know nothing of experts.
    replace(found, expert_sketch="").check_same(identity(model), "a", "b")


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["Q4_0", "Q2_K", "IQ2_XXS", "IQ1_S", "TQ1_0"])
def test_quantizing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(tiny.DIMENSIONS, "ff_exp", 256)
    path = tiny.write_tiny(tmp_path / "Wide-F32.gguf", "qwen3moe", experts=8, layers=2)
    entries = {}
    with GgufModel(path) as source:
        for tensor in source.tensors:
            if len(tensor.shape) > 1:
                count = tensor.shape[2] if len(tensor.shape) > 2 else 1
                ones = np.ones((count, tensor.shape[0]), np.float32)
                entries[tensor.name] = Entry(ones, np.ones(count, np.float32))
        Imatrix(entries, ("x",), 1, 64).save(tmp_path / "i.gguf")
        options = QuantizeOptions(imatrix=tmp_path / "i.gguf", pure=True)
        result = Quantizer(source, options, tmp_path).run(kind).paths[0]
    with open_model(result) as quantized:
        downs = [t for t in quantized.gguf.tensors if "down_exps" in t.name]
        assert {tensor_type_name(t.type) for t in downs} == {kind}
        known, found = identity(path), quantized.identity()
    assert known.expert_sketch and found.expert_sketch != known.expert_sketch
    known.check_same(found, "a", "b")


def test_a_renamed_token_is_said_and_taken(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = changed(model, tmp_path / "o.gguf", same, rename=True)
    with caplog.at_level(logging.WARNING):
        identity(model).check_same(identity(renamed), "the plan", "o.gguf")
    assert "the plan and o.gguf have other vocabularies, but the same router" in caplog.text
    # A router that nobody knows does not vouch for it.
    unknown = replace(identity(renamed), router="", router_sketch="")
    with pytest.raises(MismatchError, match="tokenizer"):
        identity(model).check_same(unknown, "a", "b")


def test_a_plan_can_be_made_to_fit(tmp_path: Path, model: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", "qwen3moe", experts=32, layers=2, seed=9)
    layers = dict.fromkeys((0, 1), LayerPlan(tuple(range(8))))
    plan = Plan(8, layers, identity=identity(model))
    with open_model(other) as target:
        with pytest.raises(MismatchError) as caught:
            plan.for_model(target)
        assert 'set "model" to null' in caught.value.remedy
        replace(plan, identity=None).for_model(target)


def test_statistics_of_before_are_read(tmp_path: Path, model: Path) -> None:
    """Their file has no sketches, and its checksum none of them."""
    old = replace(identity(model), router_sketch="", expert_sketch="")
    assert "router_sketch" not in old.as_dict()
    sums = ExpertSums.zeros(2, 32)
    Statistics(old, (0, 1), (Domain("d", 1, "", sums),)).save(tmp_path / "s.gguf")
    with GgufModel(tmp_path / "s.gguf") as file:
        assert not [key for key in file.keys if "sketch" in key]
    assert Statistics.load(tmp_path / "s.gguf").identity == old
    now = Statistics(identity(model), (0, 1), (Domain("d", 1, "", sums),))
    now.save(tmp_path / "n.gguf")
    again = Statistics.load(tmp_path / "n.gguf").identity
    assert again.as_dict() == identity(model).as_dict()
