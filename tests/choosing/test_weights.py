"""The score from weights alone, against one computed over whole dequantized tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.choosing.weights import weight_scores
from ggprune.model import open_model
from tests.support.tiny import write_tiny


def independent(path: Path, layer: int, experts: int) -> list[float]:
    """-mean|w| / rms(w) of each expert, with the gguf package's reader."""
    parts: list[list[np.ndarray]] = [[] for _ in range(experts)]
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith(f"blk.{layer}.ffn_") and tensor.name.endswith("_exps.weight"):
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for expert, part in enumerate(weights.reshape(experts, -1)):
                parts[expert].append(part)
    scores = []
    for part in parts:
        joined = np.concatenate(part)
        scores.append(-float(np.abs(joined).mean() / np.sqrt(np.mean(joined**2))))
    return scores


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("architecture", ["qwen3moe", "gemma4"])
def test_all_rows_agree_with_whole_tensors(kind: str, architecture: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture, dtype=kind)
    model = open_model(path)
    scores = weight_scores(model, model.moe_layers, rows=10**6)
    for row, layer in enumerate(model.moe_layers):
        assert scores[row] == pytest.approx(independent(path, layer, model.experts), rel=1e-5)


def test_sampled_rows_come_near(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf", "qwen3moe"))
    some, all_of_them = (weight_scores(model, model.moe_layers, rows=r) for r in (32, 64))
    assert some == pytest.approx(all_of_them, rel=0.1)


def test_equal_weights_are_pruned_before_a_few_large_ones(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.0.ffn_") and tensor.name.endswith("_exps.weight"):
            tensor.data[3] = 0.5
            tensor.data[5] = 0
            tensor.data[5, :, 0] = 1
    reader.data.flush()
    model = open_model(path)
    scores = weight_scores(model, model.moe_layers, rows=64)[0]
    # Equally large: 1. One of 32 (or 64 in the way down) is 1, the others 0.
    assert scores[3] == pytest.approx(-1)
    share = (2 * 64 + 32) / (3 * 32 * 64)
    assert scores[5] == pytest.approx(-share / share**0.5, rel=1e-3)
    assert scores.argmin() == 3
    assert scores.argmax() == 5
