"""A masked model computes what the written file computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggprune.calibration.observers import RoutingObserver
from ggprune.errors import InputError
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.masking import MaskObserver, dropped_by
from ggprune.gguf_file import write_files
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import plan_rewrite
from ggprune.text.documents import Document, Source
from tests.support.evaluating import OPTIONS, TEXT, random_plan
from tests.support.tiny import write_tiny

CASES = {
    "softmax": ("qwen3moe", None),
    "softmax-not-renormalised": ("olmoe", None),
    "softmax-over-the-chosen": ("gpt-oss", None),
    "sigmoid-selection-bias": ("glm4moe", None),
    "sigmoid-selection-bias-in-groups": ("deepseek2", (4, 2)),
    "gemma4": ("gemma4", None),
}


@pytest.mark.llama
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("used", [None, 2])
def test_mask_equals_file(tmp_path: Path, case: str, used: int | None) -> None:
    architecture, groups = CASES[case]
    path = write_tiny(tmp_path / "m.gguf", architecture, groups=groups, mtp=0)
    check_mask_equals_file(path, tmp_path / "pruned.gguf", keep=8, n_ctx=64, noise=1e-5, used=used)


@pytest.mark.llama
def test_using_fewer_experts_alone(tmp_path: Path) -> None:
    """Nothing is dropped, and then the base is what it was."""
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    text = [Source("text", (Document(text=TEXT),))]
    with Evaluator(path, OPTIONS, text, n_ctx=64) as evaluator:
        model = evaluator.description
        every = LayerPlan(tuple(range(model.experts)))
        plan = Plan(model.experts, dict.fromkeys(model.moe_layers, every), experts_used=2)
        rewrite = plan_rewrite(model, plan, tmp_path / "fewer.gguf")
        write_files(rewrite.files, model.gguf)
        fewer, again = evaluator.measure_plan(plan), evaluator.measure_mask({})
        written = evaluator.measure_file(tmp_path / "fewer.gguf")
    assert fewer.total.kld_mean == pytest.approx(written.total.kld_mean, rel=1e-4)
    assert fewer.total.kld_mean > 1e-4 > again.total.kld_mean


@pytest.mark.llama
@pytest.mark.parametrize("name", ["gemma4-moe-tiny", "glm4-moe-tiny"])
def test_mask_equals_file_on_a_fixture(trained: Path, tmp_path: Path, name: str) -> None:
    # Activations are rounded to 8 bits for Q8_0 weights, so the last bits of the attention's sums
    # matter a little.
    path = trained.with_name(f"{name}-Q8_0.gguf")
    check_mask_equals_file(path, tmp_path / "pruned.gguf", keep=16, n_ctx=128, noise=2e-2)


def check_mask_equals_file(
    path: Path, pruned: Path, *, keep: int, n_ctx: int, noise: float, used: int | None = None
) -> None:
    text = [Source("text", (Document(text=TEXT),))]
    with Evaluator(path, OPTIONS, text, n_ctx=n_ctx) as evaluator:
        model = evaluator.description
        plan = replace(random_plan(model, keep), experts_used=used)
        rewrite = plan_rewrite(model, plan, pruned)
        write_files(rewrite.files, model.gguf)
        masked, written = evaluator.measure_plan(plan), evaluator.measure_file(pruned)
    assert masked.total.kld_mean > 5 * noise, "the plan must matter for this to say anything"
    difference = np.abs(masked.scores.kld - written.scores.kld)
    assert difference.mean() < noise * masked.total.kld_mean
    assert np.abs(masked.scores.nll - written.scores.nll).mean() < noise
    assert masked.total.ppl_ratio == pytest.approx(written.total.ppl_ratio, rel=noise)


def routed(model: Path, dropped: dict[int, list[int]], tokens: list[int]) -> np.ndarray:
    described = open_model(model)
    architecture = described.architecture
    mask = MaskObserver(described, dropped)
    routing = RoutingObserver(architecture, described.moe_layers, described.experts)
    with (
        LlamaModel(model, OPTIONS) as llama,
        LlamaContext(llama, n_ctx=256, observers=[mask, routing]) as context,
    ):
        context.decode([Tokens(0, 0, tokens)])
    described.gguf.close()
    return routing.take().count


@pytest.mark.llama
def test_composes_with_statistics(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "deepseek2", mtp=0)
    tokens = list(range(5, 69))
    whole = routed(path, {}, tokens)
    assert (whole[0] > 0).all(), "every expert is used before"
    masked = routed(path, {1: [0, 3, 15]}, tokens)
    assert (masked[0, [0, 3, 15]] == 0).all()
    assert masked[0].sum() == whole[0].sum() and masked[1].sum() == whole[1].sum()


@pytest.mark.llama
def test_set_plan_between_decodes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    mask = MaskObserver(open_model(path))
    tokens = Tokens(0, 0, list(range(5, 69)))

    def logits(context: LlamaContext) -> np.ndarray:
        context.clear()
        context.decode([tokens])
        return context.all_logits(64).copy()

    with LlamaModel(path, OPTIONS) as llama:
        with LlamaContext(llama, n_ctx=256, observers=[mask]) as context:
            before = logits(context)
            mask.set_plan({0: [1, 2, 3], 1: [4]})
            changed = logits(context)
            mask.set_plan({})
            after = logits(context)
        with LlamaContext(llama, n_ctx=256) as context:
            plain = logits(context)
    assert np.array_equal(before, plain) and np.array_equal(after, plain)
    assert not np.allclose(changed, plain)


@pytest.mark.llama
def test_expert_that_does_not_exist(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    with pytest.raises(InputError, match="no expert 16"):
        routed(path, {0: [16]}, [5, 6, 7])


def test_dropped_by(tmp_path: Path) -> None:
    plan = Plan(2, {0: LayerPlan((1, 3)), 4: LayerPlan((0, 1))}, experts=4)
    assert dropped_by(plan) == {0: (0, 2), 4: (2, 3)}
