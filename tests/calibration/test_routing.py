"""Who did what for each token: by hand, and as llama.cpp's nodes say it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggprune.calibration.merge import merge
from ggprune.calibration.routing import KEPT_BYTES, Shares, stride
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView
from ggprune.model import open_model
from ggprune.text.documents import Document, Source
from ggprune.types import no_progress
from tests.support.tiny import write_tiny

OPTIONS = RunOptions(threads=1, cache_type_k="f32", cache_type_v="f32", flash_attn="off")
TEXT = "The quick brown fox jumps over the lazy dog, and then over another one. " * 4
SOURCES = (
    Source("a", (Document(text=TEXT),)),
    Source("b", (Document(text=TEXT[::-1]),)),
)


def test_by_hand() -> None:
    contributions = np.array([[[3.0, 4.0]], [[0.0, 0.0]]], np.float32)
    shares = Shares.of(np.array([[[1, 0]], [[0, 1]]]), contributions)
    assert shares.shares[:, 0].tolist() == [
        [pytest.approx(0.36, abs=1e-3), pytest.approx(0.64, abs=1e-3)],
        [0.5, 0.5],
    ]
    assert shares.norms is not None and shares.norms[:, 0].tolist() == [5, 0]
    assert shares.sums(2)[0] == pytest.approx([0.64 + 0.5, 0.36 + 0.5], abs=1e-3)
    assert len(Shares.joined([shares, shares.at(np.array([1]))])) == 3


def test_of_long_texts_a_part_is_kept() -> None:
    assert stride(1000, 6, 8) == 1
    kept = KEPT_BYTES // (48 * (8 * 4 + 4))
    assert stride(kept, 48, 8) == 1
    assert stride(kept + 1, 48, 8) == 2
    assert stride(kept // 4, 48, 8, runs=16) == 4


class Nodes:
    """Keeps the two nodes that shares come from."""

    def __init__(self) -> None:
        self.kept: dict[str, list[np.ndarray]] = {}

    def wants(self, name: str) -> bool:
        base, _, layer = name.rpartition("-")
        return base in ("ffn_moe_topk", "ffn_moe_weighted") and layer.isdigit()

    def receive(self, name: str, tensor: TensorView) -> bool:
        self.kept.setdefault(name, []).append(tensor.array()[0].copy())
        return True


def calibrated(path: Path, **settings: object) -> Statistics:
    how = Settings(ctx=128, generate=0, **settings)  # type: ignore[arg-type]
    return Run(open_model(path), SOURCES, how, OPTIONS, no_progress).run()


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["gemma4", "qwen3moe", "deepseek2"])
def test_what_the_nodes_say(architecture: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture)
    statistics, nodes = calibrated(path), Nodes()
    with (
        LlamaModel(path, OPTIONS) as llama,
        LlamaContext(llama, n_ctx=128, observers=(nodes,)) as context,
    ):
        for source in SOURCES:
            ids = llama.tokenize(source.documents[0].text)
            for start in range(1, len(ids), 127):
                context.clear()
                context.decode([Tokens(0, 0, [ids[0], *ids[start : start + 127]], "all")])
    found = statistics.shares
    assert found is not None
    assert len(found) == sum(domain.tokens for domain in statistics.domains)
    for row, layer in enumerate(statistics.layers):
        chosen = np.concatenate([part[0] for part in nodes.kept[f"ffn_moe_topk-{layer}"]])
        weighted = np.concatenate(nodes.kept[f"ffn_moe_weighted-{layer}"]).astype(np.float64)
        squares = (weighted**2).sum(axis=2)
        expected = squares / squares.sum(axis=1, keepdims=True)
        experts = open_model(path).experts
        sums = np.bincount(chosen.ravel(), expected.ravel(), experts)
        assert found.sums(experts)[row] == pytest.approx(sums, rel=2e-3, abs=2e-3)


@pytest.mark.llama
def test_saved_and_merged(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    whole = calibrated(path)
    whole.save(tmp_path / "s.gguf")
    again = Statistics.load(tmp_path / "s.gguf").shares
    assert whole.shares is not None
    assert again is not None
    assert np.array_equal(again.experts, whole.shares.experts)
    assert np.array_equal(again.shares, whole.shares.shares)
    assert again.norms is not None and np.array_equal(again.norms, whole.shares.norms)
    parts = [(f"{n}", calibrated(path, shard=(n, 2))) for n in (1, 2)]
    merged = merge(parts).shares
    assert merged is not None
    experts = open_model(path).experts
    assert merged.sums(experts) == pytest.approx(whole.shares.sums(experts), rel=1e-2)
    domains = tuple(domain for domain in parts[0][1].domains)
    without = [
        type(domain)(domain.name, domain.tokens, domain.sha256, domain.sums) for domain in domains
    ]
    bare = Statistics(whole.identity, whole.layers, tuple(without), parts[0][1].settings)
    assert merge([("1", bare), parts[1]]).shares is None
    # An older file without norms: parts together have none.
    old = replace(
        parts[0][1],
        domains=tuple(
            replace(each, shares=replace(each.shares, norms=None))
            for each in domains
            if each.shares is not None
        ),
    )
    older = merge([("1", old), parts[1]]).shares
    assert older is not None and older.norms is None and len(older) == len(merged)


@pytest.mark.llama
def test_a_part_of_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    all_tokens = calibrated(path)
    model = open_model(path)
    size = len(model.moe_layers) * (model.experts_used * 4 + 4)
    tokens = sum(domain.tokens for domain in all_tokens.domains)
    monkeypatch.setattr("ggprune.calibration.routing.KEPT_BYTES", tokens * size // 3)
    third = calibrated(path).shares
    assert third is not None
    assert tokens // 4 <= len(third) <= tokens // 3 + 4
