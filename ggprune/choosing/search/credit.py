"""What a share of each expert is worth: a regression over random plans, token by token.

Every chunk of text is run under several random plans, each of which drops other experts in all
layers at once. As in cover, divergence grows like an exponential with the share that is lost, so
for a token t under plan m, close to the plans' mean,

    KL_tm = a_t · (1 + Σ_lj (d_mlj - d̄_lj) · s_tlj · β_l · w_lj),

with d_mlj = 1 if plan m drops expert j of layer l, s_tlj its share, a_t the mean over plans. a_t is
by far the largest part of the variance, and cancels: only differences between plans on the same
token are used. So a pass over a token tells about the few experts it uses and that plans disagree
on, and all experts of all layers are estimated at once, where leaving each one out would take as
many passes.

w_lj is 1 in the prior, so an expert the text says little of keeps its place. Layers are drawn
independently of each other and are solved one by one (weighted ridge regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.types import Floats

_SMALL = 1e-12
#: A worth outside of these would be an accident of the text.
_LEAST, _MOST = 0.1, 10.0
#: Of the mean divergence: what keeps tokens that hardly diverge from counting without limit.
_FLOOR = 0.3


@dataclass(slots=True)
class Observed:
    """A chunk of text under several plans.

    Attributes:
        routing: of its scored tokens in the whole model.
        dropped: by plan, [layers, experts] of bool.
        divergence: by plan, KL of each token, [tokens].
    """

    routing: Shares
    dropped: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    divergence: list[Floats] = field(default_factory=list)

    def usage(self, layer: int, experts: int) -> Floats:
        """s_tj of a layer, [tokens, experts]."""
        dense = np.zeros((len(self.routing.experts), experts))
        chosen = self.routing.experts[:, layer].astype(np.int64)
        np.put_along_axis(dense, chosen, self.routing.shares[:, layer], axis=1)
        return dense


@dataclass(frozen=True, slots=True)
class _Equations:
    """Weighted sums over all differences, by layer: Zᵀ W Z and Zᵀ W Δ."""

    gram: Floats
    right: Floats
    squares: float
    count: int


def fit(
    observed: Sequence[Observed], shape: tuple[int, int], deviations: Sequence[float]
) -> list[Floats]:
    """Estimate what a share of each expert is worth.

    Args:
        observed: chunks; those with fewer than two plans say nothing.
        shape: layers, experts.
        deviations: standard deviations of w in the prior: 0 leaves all at 1.

    Returns:
        [layers, experts] for each deviation; 1 on average over layers.
    """
    equations = _equations(observed, *shape)
    slopes = _slopes(equations)
    gram = equations.gram * (slopes**2)[:, None, None]
    right = equations.right * slopes[:, None]
    noise = _noise(equations, gram, right)
    relative = (slopes / slopes.mean())[:, None]
    return [_solved(gram, right, noise, deviation) * relative for deviation in deviations]


def _equations(observed: Sequence[Observed], layers: int, experts: int) -> _Equations:
    gram, right = np.zeros((layers, experts, experts)), np.zeros((layers, experts))
    squares, count = 0.0, 0
    parts = [part for part in observed if len(part.divergence) > 1]
    floor = _FLOOR * sum(float(np.mean(part.divergence)) for part in parts) / max(len(parts), 1)
    for part in parts:
        kl = np.array(part.divergence)
        mean = kl.mean(axis=0)
        # Differences of a token scatter as much as it diverges.
        weight = 1 / (mean + floor + _SMALL) ** 2
        differences = kl - mean
        squares += float((differences**2 * weight).sum())
        count += differences.size
        dropped = np.array(part.dropped, np.float64)
        disagreed = dropped - dropped.mean(axis=0)
        for layer in range(layers):
            usage = part.usage(layer, experts) * mean[:, None]
            weighted = usage * weight[:, None]
            # Σ over plans of (dᵢ dⱼ) · Σ over tokens of (w sᵢ sⱼ): plans and tokens separate.
            by_plan = disagreed[:, layer].T @ disagreed[:, layer]
            gram[layer] += by_plan * (usage.T @ weighted)
            right[layer] += (disagreed[:, layer] * (differences @ weighted)).sum(axis=0)
    return _Equations(gram, right, squares, count)


def _slopes(equations: _Equations) -> Floats:
    """β of each layer, with which w = 1 fits it best."""
    ones = equations.gram.sum(axis=(1, 2))
    slopes = np.divide(equations.right.sum(axis=1), ones, where=ones > 0, out=np.zeros_like(ones))
    positive = slopes[slopes > 0]
    floor = 0.1 * float(positive.mean()) if len(positive) else 1.0
    bounded: Floats = np.maximum(slopes, floor)
    return bounded


def _noise(equations: _Equations, gram: Floats, right: Floats) -> float:
    """Variance of a weighted difference that w = 1 leaves unexplained."""
    explained = 2 * right.sum() - gram.sum()
    left = max(equations.squares - float(explained), 0.0)
    return left / max(equations.count, 1) + _SMALL


def _solved(gram: Floats, right: Floats, noise: float, deviation: float) -> Floats:
    """Find the posterior mode of w under a normal prior around 1."""
    worth = np.ones_like(right)
    if deviation <= 0:
        return worth
    penalty = noise / deviation**2
    for layer in range(len(right)):
        system = gram[layer] + penalty * np.eye(right.shape[1])
        worth[layer] += np.linalg.solve(system, right[layer] - gram[layer].sum(axis=1))
    return np.clip(worth, _LEAST, _MOST)
