"""A plan may set the router's bias to 0 (gpt-oss): plan, mask and file agree, by measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggprune
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.choosing.search.search import is_better
from ggprune.errors import InputError
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import dropped_by
from ggprune.model import open_model
from ggprune.model.architectures import ARCHITECTURES
from ggprune.plan import LayerPlan, Plan
from ggprune.text.documents import Document, Source
from ggprune.types import no_progress
from tests.support.evaluating import OPTIONS
from tests.support.llama_ctypes import loaded
from tests.support.slicing import EXPERTS, KEPT, TOKENS, choose, masking, read
from tests.support.tiny import write_tiny


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = write_tiny(tmp_path / "base.gguf", "gpt-oss", keys={"context_length": 1024})
    set_biases(path, lambda data: 10 * data)
    return path


def set_biases(path: Path, change) -> None:
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name.endswith("ffn_gate_inp.bias"):
            tensor.data[:] = change(tensor.data)


def plan_of(base: Path) -> Plan:
    layers = {layer: LayerPlan(tuple(kept)) for layer, kept in choose(read(base)[0]).items()}
    return Plan(KEPT, layers, zero_bias=True)


@pytest.mark.llama
def test_plan_mask_and_file_agree(base: Path, tmp_path: Path) -> None:
    plan = plan_of(base)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").zero_bias
    assert plan.hash != replace(plan, zero_bias=False).hash
    pruned = ggprune.apply(base, tmp_path / "plan.json", tmp_path / "pruned.gguf").path
    biases = [t for n, t in read(pruned)[1].items() if n.endswith("ffn_gate_inp.bias")]
    assert len(biases) == len(plan.layers)
    assert all(bias.shape.tolist() == [KEPT] and not bias.data.any() for bias in biases)

    text = [Source("text", (Document(text="one two three " * 40),))]
    with Evaluator(base, OPTIONS, text, n_ctx=64) as evaluator:
        kept = evaluator.measure_plan(replace(plan, zero_bias=False))
        masked, written = evaluator.measure_plan(plan), evaluator.measure_file(pruned)
    assert np.abs(masked.scores.kld - written.scores.kld).max() < 1e-5
    assert np.abs(masked.scores.kld - kept.scores.kld).max() > 1e-2

    dropped = {
        layer: [e for e in range(EXPERTS) if e not in part.keep]
        for layer, part in plan.layers.items()
    }
    mask, nodes = masking(base, ARCHITECTURES["gpt-oss"], dropped)
    set_biases(base, np.zeros_like)
    with loaded(base) as model:
        expected = model.run(TOKENS, mask, nodes.__contains__)
    with loaded(pruned) as model:
        assert np.abs(model.run(TOKENS) - expected).max() <= 1e-4 * np.std(expected)


@pytest.mark.llama
def test_auto_measures_both(base: Path) -> None:
    def words(seed: int) -> tuple[Source, ...]:
        letters = np.random.default_rng(seed).choice(list("etaoin shrdlu"), 2800)
        return (Source("text", (Document(text="".join(letters.tolist())),)),)

    with open_model(base) as model:
        settings = Settings(ctx=512, generate=0)
        statistics = Run(model, words(0), settings, OPTIONS, no_progress).run()
        resources = Resources(model=model, options=OPTIONS, search_sources=words(1))
        request = Request(
            budget=Budget(keep=8), method="contribution", router_bias="auto", search_plans=1
        )
        plan = choose_plan(statistics, request, resources)
        fixed = choose_plan(statistics, replace(request, router_bias="zero"), resources)
    found = plan.settings["router_bias_kl"]
    assert fixed.zero_bias and plan.zero_bias == (found["zero"] < found["keep"])
    with Evaluator(base, OPTIONS, words(1), n_ctx=512, scored_from=64) as evaluator:
        chunks = evaluator.chunks
        measured = {
            name: evaluator.score_mask(dropped_by(plan), zero_bias=name == "zero").kld.mean()
            for name in found
        }
    assert len(chunks) > 1
    assert (measured["zero"] < measured["keep"]) == (found["zero"] < found["keep"])


def test_a_bias_is_left_out_only_where_that_is_significant() -> None:
    before = np.array([1.0, 1.2, 0.9, 1.1])
    assert is_better(before - 0.1, before)
    assert not is_better(before, before)
    assert not is_better(before + np.array([0.5, -0.6, 0.4, -0.5]), before)


@pytest.mark.llama
def test_only_routers_with_a_bias(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base.gguf", "qwen3moe")
    with pytest.raises(InputError, match="zero_bias=True: the router of qwen3moe has no bias"):
        ggprune.apply(base, plan_of(base), tmp_path / "pruned.gguf")
    with pytest.raises(InputError, match="router_bias=zero: the router of qwen3moe has no bias"):
        ggprune.prune(base, tmp_path / "pruned.gguf", keep=8, router_bias="zero")
