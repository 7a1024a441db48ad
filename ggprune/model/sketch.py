"""Sketches of weights: a few projections that quantizing hardly changes, and other weights do.

A projection is the product with fixed pseudo-random normal numbers, so that rounding changes it by
as much as it changes the weights, relatively. Compared are projections of whole routers, one a
layer, divided by the router's norm, and of one row of the down matrix of some experts, spread over
all layers. Changes as small as a quantization's (a
fine-tuned model with the same router) are not seen.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ggprune.gguf_file import TENSOR_TYPES, GgufModel, Tensor
from ggprune.types import Floats, Floats32

#: Rows of experts that are projected: each is a small read somewhere in the file.
ROWS = 512
#: Differences of routers, relatively: both unquantized (BF16 rounds by 1/512), or one quantized.
ROUNDED, QUANTIZED = 1 / 128, 0.05
#: The least correlation of experts; types of two bits keep 0.9, other models have 0.
_ALIKE = 0.5
#: Share of the experts that may be zero in one file only.
_ZERO = 0.01


def router_sketch(gguf: GgufModel, routers: Iterable[Tensor]) -> str:
    """Project each router; empty where a type is unknown."""
    found = []
    for tensor in routers:
        weights = decoded(tensor, gguf.read(tensor))
        if weights is None:
            return ""
        norm = float(np.linalg.norm(weights.astype(np.float64)))
        found.append(_projected(weights) * math.sqrt(weights.size) / (norm or 1.0))
    return _encoded(np.array(found, "<f4"))


def expert_sketch(gguf: GgufModel, downs: Sequence[Tensor], experts: int) -> str:
    """Project a row of some experts.

    Args:
        downs: down matrices of all layers, [columns, rows, experts] as the file has it.
    """
    total, found = len(downs) * experts, []
    for number in range(min(ROWS, total)):
        layer, expert = divmod(number * total // min(ROWS, total), experts)
        tensor = downs[layer]
        length = tensor.nbytes // experts // tensor.shape[1]
        start = tensor.offset + (expert * tensor.shape[1] + tensor.shape[1] // 2) * length
        weights = decoded(tensor, gguf.files[tensor.shard].read(start, length))
        if weights is None:
            return ""
        found.append(_projected(weights))
    values = np.array(found)
    scale = float(np.sqrt(np.mean(values**2))) if found else 0.0
    return _encoded((values / (scale or 1.0)).astype("<f2"))


def routers_alike(one: str, other: str, tolerance: float) -> bool | None:
    """Compare sketches of routers; None where one is missing."""
    if not one or not other:
        return None
    a, b = _decode(one, "<f4"), _decode(other, "<f4")
    if a.shape != b.shape:
        return False
    return bool(np.abs(a - b).max(initial=0) <= tolerance)


def experts_differ(one: str, other: str) -> str:
    """Say how the weights of experts differ, or nothing: they do not, or a sketch is missing."""
    if not one or not other:
        return ""
    a, b = _decode(one, "<f2"), _decode(other, "<f2")
    if a.shape != b.shape:
        return "the experts are of other sizes"
    zero = int(((a == 0) != (b == 0)).sum())
    if zero > _ZERO * len(a):
        return f"of {len(a)} experts looked at, {zero} are zero in one of them only"
    likeness = float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
    if likeness < _ALIKE and (a.any() or b.any()):
        return f"the weights of their experts differ (correlation {likeness:.2f})"
    return ""


def decoded(tensor: Tensor, data: bytes) -> Floats32 | None:
    """Decode weights to float32, flat; None for a type that the gguf package cannot decode."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(tensor.type)
        rows = np.frombuffer(data, np.uint8).reshape(-1, TENSOR_TYPES[tensor.type].size)
        values: Floats32 = gguf.quants.dequantize(rows, kind).reshape(-1)
    except (NotImplementedError, ValueError, KeyError):
        return None
    return values if np.isfinite(values).all() else None


def _projected(weights: Floats32) -> float:
    return float(weights.astype(np.float64) @ _normal(weights.size)) / math.sqrt(weights.size)


@functools.lru_cache(maxsize=4)
def _normal(size: int) -> Floats:
    # Unlike default_rng's, the numbers of RandomState are the same in every NumPy.
    return np.random.RandomState(20260121).standard_normal(size)


def _encoded(values: npt.NDArray[np.floating]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _decode(text: str, kind: str) -> Floats:
    try:
        return np.frombuffer(base64.b64decode(text), kind).astype(np.float64)
    except ValueError:
        return np.zeros(0)
