"""Which dropped experts cause the divergence: a regression over random plans, token by token.

Every chunk of text is run under several random plans, each of which drops other experts in all
layers at once. For a token t under plan m the divergence is modelled as

    KL_tm = a_t + Σ_j d_mj · g_tj · v_j,

with d_mj = 1 if plan m drops expert j, g_tj the gate that the whole model gives it there (0 for
all but the top-k), and v_j what a unit of lost gate costs. a_t, what the token suffers under any
plan, is by far the largest part of the variance, and cancels: only differences between plans on
the same token are used. So a pass over a token tells about the few experts it uses and that plans
disagree on, and all experts of all layers are estimated at once, where leaving each one out would
take as many passes.

v_j = v0_j · r_j, where v0_j is what a one-shot score says (times the scale of the layer) and r_j
is 1 in the prior, so an expert the text says little of keeps its place. Layers are drawn
independently of each other and are solved one by one (weighted ridge regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ggprune.planning.scoring import Floats

_SMALL = 1e-12
#: A multiplier outside of these would be an accident of the text.
_LEAST, _MOST = 0.1, 10.0


@dataclass(slots=True)
class Observed:
    """A chunk of text under several plans.

    Attributes:
        experts: that the whole model uses, [tokens, layers, used].
        gates: theirs, [tokens, layers, used].
        dropped: by plan, [layers, experts] of bool.
        divergence: by plan, KL of each token, [tokens].
    """

    experts: npt.NDArray[np.integer]
    gates: npt.NDArray[np.floating]
    dropped: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    divergence: list[Floats] = field(default_factory=list)

    def usage(self, layer: int, experts: int) -> Floats:
        """g_tj of a layer, [tokens, experts]."""
        dense = np.zeros((len(self.experts), experts))
        np.put_along_axis(
            dense, self.experts[:, layer].astype(np.int64), self.gates[:, layer], axis=1
        )
        return dense


@dataclass(frozen=True, slots=True)
class Credit:
    """The one-shot score corrected by what was measured.

    Attributes:
        scores: [layers, experts].
        spread: standard deviation of the corrections; 0 if the prior was left as it is.
    """

    scores: Floats
    spread: float


@dataclass(frozen=True, slots=True)
class _Equations:
    """Weighted sums over all differences, by layer: Zᵀ W Z and Zᵀ W Δ."""

    gram: Floats
    right: Floats
    squares: float
    count: int


def fit(observed: Sequence[Observed], prior: Floats, deviations: Sequence[float]) -> list[Credit]:
    """Estimate what each expert is worth.

    Args:
        observed: chunks; those with fewer than two plans say nothing.
        prior: a one-shot score, not negative, [layers, experts]; only proportions within a
            layer count.
        deviations: standard deviations of r in the prior: 0 leaves the score as it is.

    Returns:
        One for each deviation.
    """
    unit = _unit_costs(observed, prior)
    equations = _equations(observed, unit)
    gram, right = _with_layer_scales(equations)
    noise = _noise(equations, gram, right)
    return [_solved(prior, gram, right, noise, deviation) for deviation in deviations]


def _unit_costs(observed: Sequence[Observed], prior: Floats) -> Floats:
    """v0 up to the scale of a layer: the prior's score over how much the text uses an expert."""
    layers, experts = prior.shape
    used = np.zeros_like(prior)
    for part in observed:
        for layer in range(layers):
            used[layer] += part.usage(layer, experts).sum(axis=0)
    used += 0.02 * used.mean(axis=1, keepdims=True) + _SMALL
    costs: Floats = np.maximum(prior, 1e-3 * prior.mean(axis=1, keepdims=True) + _SMALL) / used
    costs = np.minimum(costs, 10 * np.median(costs, axis=1, keepdims=True))
    relative: Floats = costs / costs.mean(axis=1, keepdims=True)
    return relative


def _equations(observed: Sequence[Observed], unit: Floats) -> _Equations:
    layers, experts = unit.shape
    gram, right = np.zeros((layers, experts, experts)), np.zeros((layers, experts))
    squares, count = 0.0, 0
    for part in observed:
        if len(part.divergence) < 2:
            continue
        kl = np.array(part.divergence)
        mean = kl.mean(axis=0)
        # Tokens that suffer much under any plan also scatter much.
        weight = 1 / (mean + mean.mean() + _SMALL)
        differences = kl - mean
        squares += float((differences**2 * weight).sum())
        count += differences.size
        dropped = np.array(part.dropped, np.float64)
        disagreed = dropped - dropped.mean(axis=0)
        for layer in range(layers):
            usage = part.usage(layer, experts) * unit[layer]
            weighted = usage * weight[:, None]
            # Σ over plans of (dᵢ dⱼ) · Σ over tokens of (w gᵢ gⱼ): plans and tokens separate.
            by_plan = disagreed[:, layer].T @ disagreed[:, layer]
            gram[layer] += by_plan * (usage.T @ weighted)
            right[layer] += (disagreed[:, layer] * (differences @ weighted)).sum(axis=0)
    return _Equations(gram, right, squares, count)


def _with_layer_scales(equations: _Equations) -> tuple[Floats, Floats]:
    """Rescale v0 of each layer so that r = 1 fits it best."""
    ones = equations.gram.sum(axis=(1, 2))
    scales = np.divide(
        equations.right.sum(axis=1), ones, where=ones > 0, out=np.zeros_like(ones)
    )
    positive = scales[scales > 0]
    floor = 0.1 * float(positive.mean()) if len(positive) else 1.0
    scales = np.maximum(scales, floor)
    return equations.gram * (scales**2)[:, None, None], equations.right * scales[:, None]


def _noise(equations: _Equations, gram: Floats, right: Floats) -> float:
    """Variance of a weighted difference that r = 1 leaves unexplained."""
    explained = 2 * right.sum() - gram.sum()
    left = max(equations.squares - float(explained), 0.0)
    return left / max(equations.count, 1) + _SMALL


def _solved(
    prior: Floats, gram: Floats, right: Floats, noise: float, deviation: float
) -> Credit:
    """The posterior mode of r under a normal prior around 1, times the prior's score."""
    if deviation <= 0:
        return Credit(prior, 0.0)
    penalty = noise / deviation**2
    ratio = np.ones_like(prior)
    for layer in range(len(prior)):
        system = gram[layer] + penalty * np.eye(prior.shape[1])
        ratio[layer] += np.linalg.solve(system, right[layer] - gram[layer].sum(axis=1))
    ratio = np.clip(ratio, _LEAST, _MOST)
    return Credit(prior * ratio, float(ratio.std()))
