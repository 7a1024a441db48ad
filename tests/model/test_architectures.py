"""The table of architectures, held against llama.cpp itself with a tiny model of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggprune.errors import UnsupportedModelError
from ggprune.model import architectures
from ggprune.model.architectures import ARCHITECTURES, Architecture, Gating, Kind
from ggprune.model.tensors import ROLES, Role, layer_of, role_of
from tests.support.llama_ctypes import Node, loaded
from tests.support.slicing import (
    CASES,
    EXPERTS,
    PRUNED,
    TOKENS,
    USED,
    Metadata,
    choose,
    make,
    masking,
    moe_layers,
    per_expert,
    read,
    reference_slice,
)
from tests.support.tiny import MOE_FILES, NOT_GENERATED, SPECS, write_tiny


def layer_number(node: str) -> int:
    return int(node.rsplit("-", 1)[1])


def whole_names(names: Iterable[str]) -> Callable[[str], bool]:
    """Match nodes of these names in any layer, and not their views, which share the name."""
    pattern = re.compile(rf"({'|'.join(names)})-\d+")
    return lambda name: pattern.fullmatch(name) is not None


def observe(
    path: Path, architecture: Architecture
) -> tuple[Any, dict[str, NDArray[Any]], Counter[str]]:
    """Run a model; return logits, the nodes named ``ffn_moe_…`` and how often each was seen."""
    nodes: dict[str, NDArray[Any]] = {}
    seen: Counter[str] = Counter()

    def visit(name: str, node: Node) -> None:
        seen[name] += 1
        nodes[name] = node.array.copy()
        if name.startswith("ffn_moe_weighted-"):
            nodes[name.replace("weighted", "gates")] = node.source(1).array.copy()

    with loaded(path, embedding=architecture.kind is Kind.EMBEDDING) as model:
        logits = model.run(TOKENS, visit, whole_names([r"ffn_moe_\w+"]))
    return logits, nodes, seen


def expected_gates(
    logits: NDArray[Any], chosen: NDArray[Any], gating: Gating, normalised: bool, scale: float
) -> NDArray[Any]:
    """Compute gates from router logits as the table says, in double precision."""
    scores: Callable[[NDArray[Any]], NDArray[Any]] = {
        Gating.SOFTMAX: softmax,
        Gating.SIGMOID: lambda x: 1 / (1 + np.exp(-x)),
        Gating.SQRT_SOFTPLUS: lambda x: np.sqrt(np.log1p(np.exp(x))),
        Gating.SOFTMAX_CHOSEN: lambda x: x,
    }[gating]
    gates = np.take_along_axis(scores(logits.astype(np.float64)), chosen, axis=-1)
    if gating is Gating.SOFTMAX_CHOSEN:
        gates = softmax(gates)
    if normalised:
        gates = gates / gates.sum(axis=-1, keepdims=True)
    return gates * scale


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def test_table_covers_llama_cpp() -> None:
    assert len(MOE_FILES) == 58
    assert {spec.file or name.replace("_", "-") for name, spec in SPECS.items()} | set(
        NOT_GENERATED
    ) == set(MOE_FILES)
    assert all(name == architecture.name for name, architecture in ARCHITECTURES.items())


def test_every_architecture_is_generated() -> None:
    assert set(SPECS).isdisjoint(NOT_GENERATED)
    assert set(ARCHITECTURES) == set(SPECS) | set(NOT_GENERATED)


@pytest.mark.llama
@pytest.mark.parametrize("case", CASES)
def test_nodes(tmp_path: Path, case: str) -> None:
    path, architecture = make(tmp_path, case)
    metadata, tensors = read(path)
    used = CASES[case][1].get("used", USED)
    layers = moe_layers(tensors) - set(architectures.mtp_layers(metadata, tensors))
    logits, nodes, seen = observe(path, architecture)

    assert np.isfinite(logits).all() and logits.std() > 0.05
    assert layers and {layer_number(name) for name in seen} == layers
    gating = architectures.gating_of(architecture, metadata)
    normalised = architectures.is_normalised(architecture, metadata)
    scale = metadata.get("expert_weights_scale", 1.0)
    for layer in layers:
        for node in (*architecture.mask_nodes, architectures.CHOSEN_NODE, "ffn_moe_weighted"):
            # gpt-oss adds a bias to the logits; without one, both names are of one node.
            renamed = node == "ffn_moe_logits" and gating is Gating.SOFTMAX_CHOSEN
            assert seen[f"{node}-{layer}"] == 1 or (renamed and seen[f"{node}-{layer}"] == 0)
        chosen = nodes[f"ffn_moe_topk-{layer}"][0, 0]
        gates = nodes[f"ffn_moe_gates-{layer}"][0, :, :, 0]
        assert chosen.shape == gates.shape == (len(TOKENS), used)
        router = "ffn_moe_probs" if gating is Gating.SOFTMAX_CHOSEN else "ffn_moe_logits"
        np.testing.assert_allclose(
            gates,
            expected_gates(nodes[f"{router}-{layer}"][0, 0], chosen, gating, normalised, scale),
            rtol=1e-4,
        )
        contribution = next(
            nodes[f"{node}-{layer}"]
            for node in architecture.contribution_nodes
            if f"{node}-{layer}" in nodes
        )[0]
        assert contribution.shape[:2] == (len(TOKENS), used)
        if f"ffn_moe_out-{layer}" in nodes:
            total = nodes[f"ffn_moe_out-{layer}"][0, 0]
            np.testing.assert_allclose(contribution.sum(axis=1), total, rtol=1e-3, atol=1e-5)


@pytest.mark.llama
@pytest.mark.parametrize("name", PRUNED)
def test_residual_stream_has_the_name_that_the_table_says(tmp_path: Path, name: str) -> None:
    path, architecture = make(tmp_path, name)
    metadata, tensors = read(path)
    layers = moe_layers(tensors) - set(architectures.mtp_layers(metadata, tensors))
    asked = architecture.residual_node or "ffn_inp"
    shapes = {}
    with loaded(path, embedding=architecture.kind is Kind.EMBEDDING) as model:
        model.run(
            TOKENS,
            lambda name, node: shapes.update({name: node.array.shape[-2:]}),
            whole_names([asked]),
        )
    seen = {layer_number(name) for name in shapes}
    if architecture.residual_node is None:
        assert not layers & seen
    else:
        assert layers <= seen
        assert set(shapes.values()) == {(len(TOKENS), metadata["embedding_length"])}


@pytest.mark.llama
@pytest.mark.parametrize("case", CASES)
def test_masking_is_slicing(tmp_path: Path, case: str) -> None:
    path, architecture = make(tmp_path, case)
    metadata, _ = read(path)
    keep = choose(metadata)
    count = len(keep[0])
    target = reference_slice(path, tmp_path / "cut.gguf", keep, {"expert_count": count})

    dropped = {
        layer: [e for e in range(EXPERTS) if e not in kept]
        for layer, kept in keep.items()
        if layer in moe_layers(read(path)[1])
    }
    mask, nodes = masking(path, architecture, dropped)
    embedding = architecture.kind is Kind.EMBEDDING
    with loaded(path, embedding=embedding) as model:
        whole = model.run(TOKENS)
        masked = model.run(TOKENS, mask, nodes.__contains__)
    # load_mtp makes llama.cpp use the tensors of MTP layers, not only check them.
    with loaded(target, embedding=embedding, mtp=True) as model:
        cut = model.run(TOKENS)
    # Not exact, as a softmax over fewer experts rounds otherwise, and layers carry that on.
    spread = np.ptp(whole)
    assert np.abs(masked - cut).max() <= 5e-5 * spread
    assert np.abs(whole - cut).max() >= 5e-2 * spread


@pytest.mark.llama
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.mtp])
def test_dropping_mtp_layers_changes_nothing(tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "base.gguf", name)
    metadata, tensors = read(path)
    depth = metadata["block_count"]
    mtp = architectures.mtp_layers(metadata, tensors)
    assert mtp == (depth - 1,)
    has_experts = bool(set(mtp) & moe_layers(tensors))
    assert ARCHITECTURES[name].mtp_experts is not None
    assert ARCHITECTURES[name].mtp_experts or not has_experts

    keep = {layer: range(EXPERTS) for layer in range(depth) if layer not in mtp}
    target = reference_slice(
        path, tmp_path / "cut.gguf", keep, architectures.keys_without_mtp(metadata, mtp)
    )
    with loaded(path) as whole, loaded(target) as cut:
        np.testing.assert_array_equal(whole.run(TOKENS), cut.run(TOKENS))
    metadata, tensors = read(target)
    assert architectures.mtp_layers(metadata, tensors) == ()


def test_mtp_layers_without_tensors() -> None:
    metadata = {"block_count": 4, "nextn_predict_layers": 1}
    assert architectures.mtp_layers(metadata, ["blk.3.attn_norm.weight"]) == ()
    assert architectures.keys_without_mtp(metadata, ()) == {}


def test_keys_without_mtp() -> None:
    metadata = {
        "block_count": 4,
        "nextn_predict_layers": 1,
        "expert_used_count": [0, 4, 4, 2],
        "attention.indexer.types": [1, 0, 1],
        "rope.dimension_sections": [4, 2, 2, 0],
    }
    assert architectures.keys_without_mtp(metadata, (3,)) == {
        "block_count": 3,
        "nextn_predict_layers": 0,
        "expert_used_count": [0, 4, 4],
    }


@pytest.mark.parametrize("name", SPECS)
def test_expert_tensors(tmp_path: Path, name: str) -> None:
    _, tensors = read(write_tiny(tmp_path / "base.gguf", name, tensors="scales"))
    expected = per_expert(tensors)
    assert any("ffn_down_exps.weight" in tensor for tensor in expected)
    for tensor in tensors:
        if "chexps" in tensor:
            with pytest.raises(UnsupportedModelError, match=tensor):
                role_of(tensor)
            continue
        found = role_of(tensor)
        assert (found is not None) == (tensor in expected), tensor
        if found:
            assert tensors[tensor].shape[-1] == EXPERTS
            assert ROLES[tensor.removeprefix(f"blk.{layer_of(tensor)}.")] is found
    biased = any(tensor.endswith("ffn_gate_inp.bias") for tensor in tensors)
    assert ARCHITECTURES[name].router_bias == biased


def test_roles() -> None:
    roles = {
        "blk.3.ffn_gate_inp.weight": Role.ROUTER,
        "blk.3.ffn_gate_inp.bias": Role.ROUTER_BIAS,
        "blk.3.exp_probs_b": Role.SELECTION_BIAS,
        "blk.3.ffn_gate_up_exps.weight": Role.GATE_UP,
        "blk.3.ffn_down_exps.weight": Role.DOWN,
        "blk.3.ffn_down_exps.bias": Role.BIAS,
        "blk.3.ffn_up_exps.input_scale": Role.INPUT_SCALE,
    }
    for name, role in roles.items():
        assert role_of(name) is role


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.ffn_side_exps.weight",
        "blk.0.exp_probs_c.bias",
        "blk.0.ffn_gate_inp.lora_a",
        "blk.0.ffn_gate_up_exps.scale",
        "ffn_up_exps.weight",
        "expert_map.weight",
        "blk.0.ffn_gate.7.weight",
    ],
)
def test_unknown_tensors_that_look_per_expert_stop(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(name)):
        role_of(name)


@pytest.mark.parametrize(
    "name",
    [
        "output.weight",
        "blk.1.ffn_gate_inp_shexp.weight",
        "blk.1.ffn_up_shexp.weight",
        "blk.1.ffn_norm_exps.weight",
        "blk.1.ffn_gate_inp.scale",
        "blk.1.ffn_latent_up.weight",
        "blk.1.attn_k_b.weight",
    ],
)
def test_tensors_that_are_not_per_expert(name: str) -> None:
    assert role_of(name) is None


def test_layer_of() -> None:
    assert layer_of("blk.12.attn_q.weight") == 12
    assert layer_of("output_norm.weight") is None
    assert layer_of("enc.blk.1.attn_q.weight") is None


@pytest.mark.parametrize(
    ("name", "metadata", "refused"),
    [
        ("llama4", {"expert_count": 128}, True),
        ("llama4", {"expert_count": 16}, False),
        ("grovemoe", {"expert_count": 128}, True),
        ("dflash", {}, True),
        ("qwen3moe", {"expert_count": 128}, False),
    ],
)
def test_refusals(name: str, metadata: Metadata, refused: bool) -> None:
    refusal = ARCHITECTURES[name].refusal(metadata)
    assert (refusal is not None) == refused


def test_gating_of_a_file_that_names_none() -> None:
    with pytest.raises(UnsupportedModelError, match="expert_gating_func is missing"):
        architectures.gating_of(ARCHITECTURES["dots1"], {})
    with pytest.raises(UnsupportedModelError, match="expert_gating_func is 9"):
        architectures.gating_of(ARCHITECTURES["glm4moe"], {"expert_gating_func": 9})
    assert architectures.gating_of(ARCHITECTURES["glm4moe"], {}) is Gating.SIGMOID


def test_notes_depend_on_the_file() -> None:
    nemotron = ARCHITECTURES["nemotron_h_moe"]
    assert architectures.statistics_note(nemotron, {"moe_latent_size": 1024})
    assert not architectures.statistics_note(nemotron, {})
    assert architectures.statistics_note(ARCHITECTURES["gemma4"], {})
