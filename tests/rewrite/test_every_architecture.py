"""The main job on a generated model of every architecture.

Calibrate, plan, write; then the strongest check there is: the written file computes what the base
model computes with the dropped experts masked. The reference slice, the masks and the logits come
from code that knows nothing of ggprune.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
from ggprune.errors import InputError
from ggprune.gguf_file import write_files
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel, open_model
from ggprune.model.architectures import Kind
from ggprune.plan import LAST_LAYER_RULE, LayerPlan, Plan
from ggprune.rewrite import check_result, plan_rewrite, verify_bytes
from tests.support.evaluating import OPTIONS
from tests.support.llama_ctypes import loaded
from tests.support.plans import planned
from tests.support.slicing import (
    CASES,
    TOKENS,
    choose,
    make,
    masking,
    read,
    reference_slice,
)

UNREFUSED = {name: case for name, case in CASES.items() if name != "dflash"}


def calibrated(model: MoeModel) -> Statistics:
    observer = RoutingObserver(model.architecture, model.moe_layers, model.experts)
    with (
        LlamaModel(model.gguf.path, OPTIONS) as llama,
        LlamaContext(llama, n_ctx=256, observers=[observer]) as context,
    ):
        context.decode([Tokens(0, 0, TOKENS)])
    domain = Domain("random", len(TOKENS), "0" * 64, observer.take())
    return Statistics(model.identity(), model.moe_layers, (domain,))


def used_by_layer(model: MoeModel, row: int) -> int:
    used = model.metadata["expert_used_count"]
    return used[model.moe_layers[row]] if isinstance(used, list) else used


@pytest.mark.llama
@pytest.mark.parametrize("case", UNREFUSED)
def test_calibrate_and_prune(tmp_path: Path, case: str) -> None:
    path, architecture = make(tmp_path, case)
    model = open_model(path)
    assert model.refusal is None
    statistics = calibrated(model)
    check_sums(model, statistics.total)

    keep = model.counts.rounded(11, "down")
    rewrite = plan_rewrite(model, planned(statistics, keep), tmp_path / "pruned.gguf")
    write_files(rewrite.files, model.gguf)
    result = check_result(tmp_path / "pruned.gguf", rewrite)
    assert verify_bytes(model, rewrite, result.gguf) > 0
    for layer in set(model.mtp_layers) & set(model.expert_layers):
        assert rewrite.plan.layers[layer].rule == LAST_LAYER_RULE

    kept = {layer: list(part.keep) for layer, part in rewrite.plan.layers.items()}
    everything = {layer: kept.get(layer, []) for layer in range(model.layers)}
    reference = reference_slice(
        path, tmp_path / "reference.gguf", everything, {"expert_count": keep}
    )
    assert_same_model(tmp_path / "pruned.gguf", reference)

    dropped = {layer: rewrite.plan.dropped(layer) for layer in model.moe_layers}
    assert_same_function(path, tmp_path / "pruned.gguf", architecture, dropped)


def check_sums(model: MoeModel, sums: ExpertSums) -> None:
    assert (sums.tokens == len(TOKENS)).all(), "the last layer sees as many tokens as the others"
    for row in range(len(model.moe_layers)):
        assert sums.count[row].sum() == len(TOKENS) * used_by_layer(model, row)
    seen = sums.count > 0
    assert (sums.contribution_sum[seen] > 0).all() and (sums.norm_max[seen] > 0).all()
    assert (sums.contribution_sum[~seen] == 0).all()
    # Σ‖f‖ lies between max and N·max, Σ‖f‖² between its mean square and that of the max.
    assert (sums.norm_sum <= sums.count * sums.norm_max * (1 + 1e-9)).all()
    assert (sums.norm_sq_sum * sums.count >= sums.norm_sum**2 * (1 - 1e-9)).all()


def assert_same_model(ours: Path, reference: Path) -> None:
    """A second reader sees what a second writer wrote."""
    metadata, tensors = read(ours)
    wanted_metadata, wanted = read(reference)
    metadata = {key: value for key, value in metadata.items() if not key.startswith("ggprune.")}
    assert metadata == wanted_metadata
    assert list(tensors) == list(wanted)
    for name, tensor in tensors.items():
        assert tensor.tensor_type == wanted[name].tensor_type
        assert tensor.shape.tolist() == wanted[name].shape.tolist()
        assert np.array_equal(tensor.data, wanted[name].data), name


@pytest.mark.llama
@pytest.mark.parametrize("case", UNREFUSED)
def test_fewer_experts_used(tmp_path: Path, case: str) -> None:
    path, architecture = make(tmp_path, case)
    model = open_model(path)
    metadata, _ = read(path)
    kept = {layer: LayerPlan(tuple(part)) for layer, part in choose(metadata).items()}
    layers = {layer: part for layer, part in kept.items() if layer in model.expert_layers}
    keep = len(next(iter(layers.values())).keep)
    plan = Plan(keep, layers, experts_used=model.experts_used - 1 or None)
    if isinstance(model.metadata["expert_used_count"], list) or model.hash_tables:
        with pytest.raises(InputError, match=r"for every (layer|token)"):
            plan_rewrite(model, plan, tmp_path / "pruned.gguf")
        return
    if model.experts_used == 1:
        assert plan.experts_used is None, "none fewer to test"
        return
    rewrite = plan_rewrite(model, plan, tmp_path / "pruned.gguf")
    write_files(rewrite.files, model.gguf)
    result = check_result(tmp_path / "pruned.gguf", rewrite)
    assert result.experts_used == model.experts_used - 1
    assert result.gguf.get("ggprune.source_experts_used") == model.experts_used
    dropped = {layer: rewrite.plan.dropped(layer) for layer in model.moe_layers}
    overrides = {f"{architecture.name}.expert_used_count": model.experts_used - 1}
    assert_same_function(path, tmp_path / "pruned.gguf", architecture, dropped, overrides)


def assert_same_function(base: Path, pruned: Path, architecture, dropped, overrides=None) -> None:
    embedding = architecture.kind is Kind.EMBEDDING

    mask, nodes = masking(base, architecture, dropped)
    with loaded(base, embedding=embedding, overrides=overrides) as model:
        plain = model.run(TOKENS)
        masked = model.run(TOKENS, mask, nodes.__contains__)
    with loaded(pruned, embedding=embedding) as model:
        found = model.run(TOKENS)
    spread = float(np.std(masked))
    assert np.isfinite(found).all()
    assert np.abs(found - masked).max() <= 1e-4 * spread
    assert np.abs(plain - masked).max() > 1e-2 * spread, "pruning should change something"


@pytest.mark.parametrize("case", ["gemma4", "deepseek2: groups", "gpt-oss", "qwen3moe: Q8_0"])
def test_keeping_all_gives_the_same_bytes(tmp_path: Path, case: str) -> None:
    path, _ = make(tmp_path, case)
    model = open_model(path)
    every = tuple(range(model.experts))
    plan = Plan(model.experts, {layer: LayerPlan(every) for layer in model.moe_layers})
    rewrite = plan_rewrite(model, plan, tmp_path / "same.gguf")
    write_files(rewrite.files, model.gguf)
    assert (tmp_path / "same.gguf").read_bytes() == path.read_bytes()


@pytest.mark.llama
@pytest.mark.parametrize("case", ["deepseek2", "glm4moe", "qwen35moe"])
def test_drop_mtp(tmp_path: Path, case: str) -> None:
    path, _ = make(tmp_path, case)
    model = open_model(path)
    assert model.mtp_layers
    metadata, _ = read(path)
    kept = {layer: LayerPlan(tuple(part)) for layer, part in choose(metadata).items()}
    plan = Plan(11, {layer: kept[layer] for layer in model.moe_layers})
    rewrite = plan_rewrite(model, plan, tmp_path / "dropped.gguf", mtp="drop")
    write_files(rewrite.files, model.gguf)
    result = open_model(tmp_path / "dropped.gguf")
    assert result.mtp_layers == () and result.layers == model.layers - len(model.mtp_layers)
    assert not [t.name for t in result.gguf.tensors if t.name.startswith(f"blk.{result.layers}.")]
    reader = gguf.GGUFReader(tmp_path / "dropped.gguf")
    assert reader.fields[f"{case}.nextn_predict_layers"].contents() == 0
    with loaded(tmp_path / "dropped.gguf", mtp=True) as llama:
        assert np.isfinite(llama.run(TOKENS)).all()
