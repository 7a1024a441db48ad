"""Experts that stay whatever their score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ggprune.errors import InputError
from ggprune.model import ExpertCounts
from ggprune.types import Floats

#: "Super experts": arXiv 2507.23279. Their outputs make the massive activations that attention
#: sinks rest on; without a handful of them a model collapses.
_PERCENTILE = 99.5
_OF_LARGEST = 0.1
_FIRST_LAYERS = 0.75

Forced = Mapping[int, frozenset[int]]
_ENTRY = re.compile(r"(\d+):(\d+(?:,\d+)*)")


def super_experts(norm_max: Floats, layers: Sequence[int], depth: int) -> dict[int, frozenset[int]]:
    """Experts whose largest output is far above all others', by layer.

    An expert is one if its max ‖f‖ is above the 99.5th percentile of all experts' and above a
    tenth of the largest, in the first three quarters of the model's layers (arXiv 2507.23279).

    Args:
        norm_max: max ‖f‖, [layers with experts, experts].
        layers: their block numbers.
        depth: layers of the model.
    """
    if not norm_max.size or norm_max.max() <= 0:
        return {}
    limit = max(float(np.percentile(norm_max, _PERCENTILE)), _OF_LARGEST * float(norm_max.max()))
    found = {}
    for row, layer in enumerate(layers):
        experts = np.flatnonzero(norm_max[row] > limit)
        if layer < _FIRST_LAYERS * depth and len(experts):
            found[layer] = frozenset(experts.tolist())
    return found


def parse_always_keep(texts: Iterable[str], layers: Sequence[int], experts: int) -> Forced:
    """Read ``3:17,44`` (layer 3, experts 17 and 44), repeatable; ``3:17;5:2`` in one.

    Raises:
        InputError: it is not that, or there is no such layer or expert.
    """
    forced: dict[int, frozenset[int]] = {}
    for part in (part.strip() for text in texts for part in text.split(";")):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise InputError(
                f"--always-keep {part}: is not LAYER:EXPERT,EXPERT", remedy="Write 3:17,44"
            )
        layer = int(match[1])
        numbers = frozenset(int(number) for number in match[2].split(","))
        if layer not in layers or max(numbers) >= experts:
            raise InputError(
                f"--always-keep {part}: there is no such layer or expert",
                remedy=f"Layers with experts: {layers[0]} to {layers[-1]}; experts 0 to "
                f"{experts - 1}.",
            )
        forced[layer] = forced.get(layer, frozenset()) | numbers
    return forced


def joined(*parts: Forced) -> dict[int, frozenset[int]]:
    """All that any of them keeps."""
    result: dict[int, frozenset[int]] = {}
    for part in parts:
        for layer, experts in part.items():
            result[layer] = result.get(layer, frozenset()) | experts
    return result


def check_room(forced: Forced, keep: int, counts: ExpertCounts) -> None:
    """Raise InputError if more experts of a group must stay than can."""
    size, room = counts.experts // counts.groups, keep // counts.groups
    for layer, experts in forced.items():
        for group in range(counts.groups):
            inside = [e for e in sorted(experts) if e // size == group]
            if len(inside) > room:
                where = f" of group {group}" if counts.groups > 1 else ""
                raise InputError(
                    f"layer {layer}: {len(inside)} experts{where} are protected ({inside}), "
                    f"only {room} can stay",
                    remedy="Keep more, or protect fewer (--always-keep, --no-super-experts).",
                )


def raised(scores: Floats, layers: Sequence[int], forced: Forced) -> Floats:
    """Scores with forced experts above all others, [layers, experts]."""
    if not forced:
        return scores
    scores = scores.copy()
    for row, layer in enumerate(layers):
        scores[row, sorted(forced.get(layer, ()))] = np.inf
    return scores
