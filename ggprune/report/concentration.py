"""How unevenly experts contribute, and how far domains agree on who matters: pure functions.

``values`` are those of the experts of one layer, not negative, usually Σ g‖f‖.
"""

from __future__ import annotations

import numpy as np

from ggprune.types import Floats


def top_share(values: Floats, top: int = 8) -> float:
    """Compute the share of the sum that the ``top`` largest values have; 0 if the sum is 0."""
    total = float(values.sum())
    return float(np.sort(values)[::-1][:top].sum()) / total if total > 0 else 0.0


def experts_for(values: Floats, share: float = 0.8) -> int:
    """Count the largest values it takes to reach ``share`` of the sum; 0 if the sum is 0."""
    total = float(values.sum())
    if total <= 0:
        return 0
    reached = np.cumsum(np.sort(values)[::-1]) / total
    # Adding up in another order may fall short by rounding: 0.1 + 0.7 < 0.8.
    return min(int(np.searchsorted(reached, share - 1e-9)) + 1, len(values))


def gini(values: Floats) -> float:
    """Compute the Gini coefficient: 0 when all are equal, (n-1)/n when one has everything.

    G = 2 Σ i·x_i / (n Σ x) - (n+1)/n with x ascending and i from 1 (Gini 1912; the form for a
    finite population).
    """
    total = float(values.sum())
    count = len(values)
    if total <= 0:
        return 0.0
    weighted = float((np.arange(1, count + 1) * np.sort(values)).sum())
    return 2 * weighted / (count * total) - (count + 1) / count


def overlap(values: list[Floats], top: int) -> Floats:
    """Count the top experts each pair of domains shares, as a mean over layers.

    Args:
        values: by domain, [layers, experts]; a layer where a domain has nothing is left out.
        top: how many experts count as top.

    Returns:
        [domains, domains], symmetric, ``top`` on the diagonal; NaN where no layer has both.
    """
    # [domains, layers, experts]; the lower index wins a tie.
    sums = np.array(values)
    ranks = np.argsort(np.argsort(-sums, axis=2, kind="stable"), axis=2)
    has_some = (sums.sum(axis=2) > 0).astype(float)
    chosen = (ranks < top) * has_some[:, :, None]
    shared = np.einsum("ile,jle->ij", chosen, chosen)
    layers = np.einsum("il,jl->ij", has_some, has_some)
    mean: Floats = np.divide(shared, layers, where=layers > 0, out=np.full_like(shared, np.nan))
    return mean


def relative(scores: Floats) -> Floats:
    """Scale scores to multiples of their layer's mean, or to ranks from 0 to 1 if any is negative.

    Experts compete within a layer only, so that is what a picture must make comparable.
    """
    if (scores < 0).any():
        ranks = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1, kind="stable")
        by_rank: Floats = ranks / max(scores.shape[1] - 1, 1)
        return by_rank
    mean = scores.mean(axis=1, keepdims=True)
    multiples: Floats = np.divide(scores, mean, where=mean > 0, out=np.zeros_like(scores))
    return multiples
