"""Scores: how much each expert matters, as pure functions of the sums observed.

In the formulas N is the number of tokens routed to the expert, g the gate and f the output, and
sums run over those tokens. A higher score means keep. See docs/methods.md for the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import ExpertSums
from ggprune.errors import InputError
from ggprune.types import Floats


@dataclass(frozen=True, slots=True)
class Method:
    """A way to score experts.

    Attributes:
        name: for --method.
        formula: for people.
        source: where it comes from.
        score: sums, seed -> scores [layers, experts].
        additive: whether it is a sum over tokens, so that domains can be added up and blended.
    """

    name: str
    formula: str
    source: str
    score: Callable[[ExpertSums, int], Floats]
    additive: bool = False


def per_token(total: npt.NDArray[np.generic], count: npt.NDArray[np.int64]) -> Floats:
    """Mean over the tokens routed to each expert; 0 where there were none."""
    values: Floats = total.astype(np.float64)
    return np.divide(values, count, where=count > 0, out=np.zeros_like(values))


def reap(sums: ExpertSums, seed: int = 0) -> Floats:
    """(1/N) Σ g‖f‖: Lasby et al., arXiv 2510.13999, equation 9."""
    return per_token(sums.contribution_sum, sums.count)


def contribution(sums: ExpertSums, seed: int = 0) -> Floats:
    """Σ g‖f‖: what the expert adds to the residual stream, all in all."""
    return sums.contribution_sum.copy()


def frequency(sums: ExpertSums, seed: int = 0) -> Floats:
    """N: how often the router chooses the expert."""
    return sums.count.astype(np.float64)


def gate(sums: ExpertSums, seed: int = 0) -> Floats:
    """Σ g: how often, weighted by how much."""
    return sums.gate_sum.copy()


def ean(sums: ExpertSums, seed: int = 0) -> Floats:
    """Σ ‖f‖: expert activation norm, from the ablation in arXiv 2510.13999."""
    return sums.norm_sum.copy()


def man(sums: ExpertSums, seed: int = 0) -> Floats:
    """(1/N) Σ ‖f‖: mean activation norm, arXiv 2606.15716."""
    return per_token(sums.norm_sum, sums.count)


def msan(sums: ExpertSums, seed: int = 0) -> Floats:
    """(1/N) Σ ‖f‖²: mean squared activation norm, arXiv 2606.15716."""
    return per_token(sums.norm_sq_sum, sums.count)


def random(sums: ExpertSums, seed: int = 0) -> Floats:
    """Uniform numbers: the control that no claim is made without."""
    return np.random.default_rng(seed).random(sums.count.shape)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("reap", "(1/N) Σ g‖f‖", "Lasby et al., arXiv 2510.13999, eq. 9", reap),
        Method("contribution", "Σ g‖f‖", "contribution to the residual", contribution, True),
        Method("frequency", "N", "baseline", frequency, True),
        Method("gate", "Σ g", "baseline", gate, True),
        Method("ean", "Σ ‖f‖", "arXiv 2510.13999, ablation", ean, True),
        Method("man", "(1/N) Σ ‖f‖", "arXiv 2606.15716", man),
        Method("msan", "(1/N) Σ ‖f‖²", "arXiv 2606.15716", msan),
        Method("random", "seeded", "control", random),
    )
}


#: Of the sums; better than `reap` at every size on the trained fixture (docs/evidence.md).
DEFAULT_METHOD = "contribution"
#: Chooses token by token, by more than these sums: see cover.
COVER = "cover"


def score(method: str, sums: ExpertSums, seed: int = 0) -> Floats:
    """Score all experts.

    Args:
        method: a key of METHODS.
        sums: what was observed.
        seed: for methods that draw.

    Returns:
        Scores of shape [layers, experts], higher is kept.

    Raises:
        InputError: no such method.
    """
    if method not in METHODS:
        raise InputError(
            f"--method {method}: unknown", remedy=f"One of: {', '.join(sorted(METHODS))}."
        )
    return METHODS[method].score(sums, seed)


def choose(scores: Floats, keep: int, groups: int = 1) -> npt.NDArray[np.int64]:
    """Indices of the ``keep`` best experts of a layer, ascending; the lower index wins a tie.

    Args:
        scores: of one layer, [experts].
        keep: how many stay; a multiple of ``groups``.
        groups: contiguous blocks of experts of which the same number stays each.
    """
    size = len(scores) // groups
    kept = [
        start + np.argsort(-scores[start : start + size], kind="stable")[: keep // groups]
        for start in range(0, len(scores), size)
    ]
    return np.sort(np.concatenate(kept)).astype(np.int64)


def choose_all(scores: Floats, keep: int, groups: int = 1) -> npt.NDArray[np.int64]:
    """As choose, for all layers at once.

    Args:
        scores: [layers, experts].
        keep, groups: see choose.

    Returns:
        [layers, keep], each row ascending.
    """
    layers, experts = scores.shape
    size = experts // groups
    blocks = scores.reshape(layers, groups, size)
    best = np.argsort(-blocks, axis=-1, kind="stable")[..., : keep // groups]
    kept = (best + np.arange(groups)[:, None] * size).reshape(layers, keep)
    return np.sort(kept, axis=1).astype(np.int64)


def retained(sums: ExpertSums, row: int, kept: npt.NDArray[np.int64]) -> float:
    """Share of a layer's Σ g‖f‖ that the kept experts have; 1 if there is none."""
    contributions = sums.contribution_sum[row]
    total = float(contributions.sum())
    return float(contributions[kept].sum()) / total if total > 0 else 1.0
