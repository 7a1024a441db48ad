"""A score from the file alone, also for layers that no text was observed for.

AIMER: mean |w| over the root mean square of an expert's weights; the highest are pruned first.
The ratio is 1 if all weights are equally large and sqrt(2/π) for a normal distribution: a low one
means that a few large weights stand out, which training does to experts that learned something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ggprune.errors import InputError
from ggprune.gguf_file import Tensor
from ggprune.model import MoeModel
from ggprune.model.tensors import Role
from ggprune.types import Floats

#: Rows read of each expert's matrix, evenly spaced.
ROWS = 32
MTP_RULE = "MTP layer: lowest mean |w| / rms(w) of the weights, no statistics"
_ROLES = (Role.GATE, Role.UP, Role.GATE_UP, Role.DOWN)


def weight_scores(model: MoeModel, layers: Sequence[int], rows: int = ROWS) -> Floats:
    """Score experts by their weights: -mean|w| / rms(w) over gate, up and down together.

    Read and dequantize ``rows`` rows of each matrix, which takes seconds.

    Args:
        model: the open model.
        layers: block numbers.
        rows: of each matrix, evenly spaced; a matrix with fewer is read whole.

    Returns:
        [layers, experts], higher is kept.

    Raises:
        InputError: the gguf package cannot decode the file's quantization.
    """
    result = np.zeros((len(layers), model.experts))
    for row, layer in enumerate(layers):
        total, squares, count = np.zeros(model.experts), np.zeros(model.experts), 0
        for role in _ROLES:
            for tensor in model.tensors_of(layer, role):
                weights = _sampled(model, tensor, rows)
                total += np.abs(weights).sum(axis=1)
                squares += np.square(weights).sum(axis=1)
                count += weights.shape[1]
        if count:
            spread = np.sqrt(squares / count)
            mean = total / count
            result[row] = -np.divide(mean, spread, where=spread > 0, out=np.ones_like(mean))
    return result


def _sampled(model: MoeModel, tensor: Tensor, rows: int) -> Floats:
    """Read some rows of each expert, [experts, weights]."""
    import gguf

    height = tensor.shape[1]
    size = tensor.nbytes // (model.experts * height)
    chosen = np.unique(np.linspace(0, height - 1, min(rows, height)).round().astype(int))
    file = model.gguf.files[tensor.shard]
    data = b"".join(
        file.read(tensor.offset + (expert * height + int(row)) * size, size)
        for expert in range(model.experts)
        for row in chosen
    )
    raw: Any = np.frombuffer(data, np.uint8).reshape(-1, size)
    kind = gguf.GGMLQuantizationType(tensor.type)
    try:
        decoded = gguf.quants.dequantize(_typed(raw, kind.name), kind)
    except NotImplementedError as error:
        raise InputError(
            f"{tensor.name}: the gguf package cannot decode {kind.name}",
            remedy="Score by another method, or give a file in another quantization.",
        ) from error
    weights: Floats = np.asarray(decoded, np.float64).reshape(model.experts, -1)
    return weights


def _typed(raw: Any, name: str) -> Any:
    # The gguf package wants floats as floats, blocks as bytes.
    if name == "F32":
        return raw.view("<f4")
    return raw.view("<f2") if name == "F16" else raw
