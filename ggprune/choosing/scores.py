"""Scores of experts, and who stays by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import ExpertSums, Statistics
from ggprune.model import ExpertCounts
from ggprune.types import Floats, Ints

#: Gives scores for a count: (keep, experts that stay [layers, experts], expert groups).
ForCount = Callable[[int, npt.NDArray[np.bool_], int], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a method says of each expert; higher is kept.

    Attributes:
        total: of all text together, [layers, experts].
        by_domain: additive scores, [domains, layers, experts]; None if the scores are no sums
            over tokens, so that domains cannot be added up and blended.
        for_count: where scores depend on how many experts stay; ``total`` is then a rough guide.
        parts: scores of other methods, by name, that these are made of.
    """

    total: Floats
    by_domain: Floats | None = None
    for_count: ForCount | None = None
    parts: Mapping[str, Scores] = field(default_factory=dict)


def additive(scores: Scores, statistics: Statistics) -> Floats:
    """Return scores that add up over domains: Σ g‖f‖ where a method's own do not."""
    if scores.by_domain is not None:
        return scores.by_domain
    return np.array([domain.sums.contribution_sum for domain in statistics.domains])


def choose_all(scores: Floats, keep: int, groups: int = 1) -> Ints:
    """Find the ``keep`` best experts of every layer; the lower index wins a tie.

    Args:
        scores: [layers, experts].
        keep: experts that stay; a multiple of ``groups``.
        groups: expert groups; each keeps the same number.

    Returns:
        [layers, keep], each row ascending.
    """
    layers, experts = scores.shape
    size = experts // groups
    blocks = scores.reshape(layers, groups, size)
    best = np.argsort(-blocks, axis=-1, kind="stable")[..., : keep // groups]
    kept = (best + np.arange(groups)[:, None] * size).reshape(layers, keep)
    return np.sort(kept, axis=1).astype(np.int64)


def counts_by_layer(scores: Floats, keep: int, counts: ExpertCounts) -> Ints:
    """Share ``keep`` experts a layer out among layers so that the best of all layers stay.

    Args:
        scores: comparable between layers, [layers, experts].
        keep: the mean; a multiple of the groups.
        counts: no layer keeps fewer than the least of them; each group of it keeps as many.

    Returns:
        Experts that each layer keeps, [layers].
    """
    blocks = -np.sort(-scores.reshape(len(scores), counts.groups, -1))
    steps = blocks.sum(axis=1)
    steps[:, : counts.least // counts.groups] = np.inf
    best = np.argsort(-steps, axis=None, kind="stable")[: keep * len(scores) // counts.groups]
    return np.bincount(best // steps.shape[1]) * counts.groups


def retained(sums: ExpertSums, row: int, kept: Ints) -> float:
    """Share of a layer's Σ g‖f‖ that the kept experts have; 1 if there is none."""
    contributions = sums.contribution_sum[row]
    total = float(contributions.sum())
    return float(contributions[kept].sum()) / total if total > 0 else 1.0


def marked(kept: Ints, experts: int) -> npt.NDArray[np.bool_]:
    """Turn indices of experts into marks, [layers, experts]."""
    marks = np.zeros((len(kept), experts), np.bool_)
    np.put_along_axis(marks, kept, True, axis=1)
    return marks


def fractions(scores: Floats) -> Floats:
    """Divide scores by the sum of their layer, s_d / T_d; equal where that sum is 0.

    Args:
        scores: [..., experts], not negative.
    """
    totals = scores.sum(axis=-1, keepdims=True)
    even = np.full_like(scores, 1 / scores.shape[-1])
    relative: Floats = np.divide(scores, totals, where=totals > 0, out=even)
    return relative


def comparable(scores: Floats) -> Floats:
    """Make scores of different methods comparable: fractions, of ranks if any is negative."""
    return fractions(scores) if scores.min() >= 0 else fractions(ranks(scores))


def ranks(scores: Floats) -> Floats:
    """Rank the experts of each layer from 0 for the worst."""
    order = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1, kind="stable")
    return order.astype(np.float64)
