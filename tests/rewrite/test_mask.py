"""Masked copies compute what the base computes with the dropped experts masked, in every layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ggprune
from ggprune.cli.main import cli
from ggprune.errors import InputError, UnsupportedModelError
from ggprune.model import open_model
from ggprune.model.architectures import Gating, gating_of
from ggprune.plan import LayerPlan, Plan
from tests.support.llama_ctypes import loaded
from tests.support.slicing import CASES, EXPERTS, TOKENS, make, masking
from tests.support.tiny import SPECS, write_tiny

BIASED = [
    case
    for case, (name, _) in CASES.items()
    if name != "dflash" and any("selection" in part for part in SPECS[name].layers)
]


def by_layer(path: Path) -> Plan:
    """Keep another number of experts in each layer, as many in each group."""
    random = np.random.default_rng(3)
    layers = {}
    with open_model(path) as model:
        groups = model.counts.groups
        size = model.experts // groups
        for row, layer in enumerate(model.expert_layers):
            kept = size - 1 - row % 2 if groups > 1 else 11 - row % 4
            chosen = [g * size + e for g in range(groups) for e in random.permutation(size)[:kept]]
            layers[layer] = LayerPlan(tuple(sorted(map(int, chosen))))
    return Plan(11, layers)


@pytest.mark.llama
@pytest.mark.parametrize("case", BIASED)
def test_a_masked_copy_is_the_masked_base(tmp_path: Path, case: str) -> None:
    path, architecture = make(tmp_path, case)
    plan = by_layer(path)
    with open_model(path) as model:
        softmax = gating_of(architecture, model.metadata) is Gating.SOFTMAX
        dropped = {
            layer: [e for e in range(EXPERTS) if e not in plan.layers[layer].keep]
            for layer in model.moe_layers
        }
    if softmax:
        with pytest.raises(UnsupportedModelError, match="softmax over all experts"):
            ggprune.apply_mask(path, plan, tmp_path / "masked.gguf")
        return
    (copy,) = ggprune.apply_mask(path, plan, tmp_path / "masked.gguf")
    mask, nodes = masking(path, architecture, dropped)
    with loaded(path) as llama:
        whole = llama.run(TOKENS)
        masked = llama.run(TOKENS, mask, nodes.__contains__)
    with loaded(copy) as llama:
        found = llama.run(TOKENS)
    assert np.array_equal(found, masked)
    assert np.abs(whole - masked).max() > 1e-2 * np.std(masked), "masking should change something"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "base.gguf", "glm4moe")


def apply(*arguments: object) -> str:
    run = CliRunner().invoke(cli, ["apply", *map(str, arguments)])
    assert run.exit_code == 0, run.output
    return run.output


@pytest.mark.llama
def test_only_selection_biases_differ_and_inspect_says_so(base: Path, tmp_path: Path) -> None:
    plan = by_layer(base)
    plan.save(tmp_path / "plan.json")
    apply(base, tmp_path / "plan.json", "--mask", "-o", tmp_path / "masked.gguf")
    before, after = base.read_bytes(), (tmp_path / "masked.gguf").read_bytes()
    differ = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    with open_model(base) as model:
        biases = [t for t in model.gguf.tensors if t.name.endswith("exp_probs_b.bias")]
        inside = [range(t.offset, t.offset + t.nbytes) for t in biases]
        layers = model.expert_layers
    assert len(inside) == len(layers)
    assert all(any(at in part for part in inside) for at in differ.tolist())
    for tensor in biases:
        layer = int(tensor.name.split(".")[1])
        values = np.frombuffer(after, "<f4", EXPERTS, tensor.offset)
        kept = plan.layers[layer].keep
        assert np.flatnonzero(values > -1).tolist() == list(kept) and np.isfinite(values).all()

    def inspected(path: Path, *options: str) -> str:
        return CliRunner().invoke(cli, ["inspect", str(path), *options]).output

    counts = {str(layer): len(plan.layers[layer].keep) for layer in layers}
    assert json.loads(inspected(tmp_path / "masked.gguf", "--json"))["choosable"] == counts
    assert "9 to 11 experts of a layer can be chosen" in inspected(tmp_path / "masked.gguf")
    assert json.loads(inspected(base, "--json"))["choosable"] == {}


def test_only_masked_copies_have_counts_by_layer(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layer \d keeps \d+ experts") as refused:
        ggprune.apply(base, by_layer(base), tmp_path / "pruned.gguf")
    assert "mask=True" in str(refused.value.remedy)
    few = LayerPlan((0, 1, 2))
    with pytest.raises(InputError, match="at least 4 must stay"):
        ggprune.apply_mask(base, Plan(3, dict.fromkeys((1, 2, 3), few)), tmp_path / "masked.gguf")


def test_a_model_without_selection_bias_cannot_be_masked(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "base.gguf", "gpt-oss")
    with pytest.raises(UnsupportedModelError, match="layer 1 has no selection bias"):
        ggprune.apply_mask(path, by_layer(path), tmp_path / "masked.gguf")
