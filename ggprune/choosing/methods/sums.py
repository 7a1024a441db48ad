"""Scores that are functions of the sums observed.

In the formulas N is the number of tokens routed to the expert, g the gate and f the output, and
sums run over those tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import ExpertSums
from ggprune.choosing.methods.method import of_sums
from ggprune.types import Floats, Ints


def per_token(total: npt.NDArray[np.generic], count: Ints | Floats) -> Floats:
    """Mean over the tokens routed to each expert; 0 where there were none."""
    values: Floats = total.astype(np.float64)
    return np.divide(values, count, where=count > 0, out=np.zeros_like(values))


@of_sums(
    *("contribution", "Σ g‖f‖", "contribution to the residual"),
    additive=True,
    candidate=True,
    blends=("maxmin", None),
)
def contribution(sums: ExpertSums, seed: int = 0) -> Floats:
    """Sum what the expert adds to the residual stream."""
    return sums.contribution_sum.copy()


@of_sums("gate", "Σ g", "baseline", additive=True, candidate=True)
def gate(sums: ExpertSums, seed: int = 0) -> Floats:
    """How often the router chooses the expert, weighted by how much."""
    return sums.gate_sum.copy()


@of_sums(
    *("reap", "(1/N) Σ g‖f‖", "Lasby et al., arXiv 2510.13999, eq. 9"),
    candidate=True,
    baseline=True,
)
def reap(sums: ExpertSums, seed: int = 0) -> Floats:
    """Mean contribution of the tokens routed to the expert."""
    return per_token(sums.contribution_sum, sums.count)


@of_sums("frequency", "N", "baseline", additive=True)
def frequency(sums: ExpertSums, seed: int = 0) -> Floats:
    """How often the router chooses the expert."""
    return sums.count.astype(np.float64)


@of_sums("ean", "Σ ‖f‖", "arXiv 2510.13999, ablation", additive=True)
def ean(sums: ExpertSums, seed: int = 0) -> Floats:
    """Expert activation norm."""
    return sums.norm_sum.copy()


@of_sums("man", "(1/N) Σ ‖f‖", "arXiv 2606.15716")
def man(sums: ExpertSums, seed: int = 0) -> Floats:
    """Mean activation norm."""
    return per_token(sums.norm_sum, sums.count)


@of_sums("msan", "(1/N) Σ ‖f‖²", "arXiv 2606.15716")
def msan(sums: ExpertSums, seed: int = 0) -> Floats:
    """Mean squared activation norm."""
    return per_token(sums.norm_sq_sum, sums.count)
