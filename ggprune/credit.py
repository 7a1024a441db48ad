"""Which dropped experts cause the divergence: a regression over many random plans.

Every measurement drops a random set of experts in all layers at once and gives the KL divergence
of a chunk of text. The divergence is modelled as a sum over the dropped experts,

    E[KL of chunk n under plan m] = Σ_j d_mj · x_nj · θ_j,

with d_mj = 1 if plan m drops expert j, x_nj = Σ g over the chunk's tokens that the whole model
routes to j, and θ_j ≥ 0 what a unit of lost gate costs. θ has a Gamma prior around what a
one-shot score says, so experts that the measurements say little of keep their place, and the
estimate is its mode, found by the EM steps of a Poisson model (each measurement's divergence is
credited to its dropped experts in proportion to their present shares, as in Richardson-Lucy
deconvolution). One pass estimates thousands of experts, where leaving each one out would take as
many passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ggprune.scoring import Floats

_STEPS = 300
_SMALL = 1e-12


@dataclass(frozen=True, slots=True)
class Credit:
    """What the measurements say of each expert.

    Attributes:
        importance: expected divergence if the expert is dropped, [layers, experts].
        explained: share of the measurements' variance that the model explains; for people.
    """

    importance: Floats
    explained: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """Random plans and what they cost.

    Attributes:
        dropped: whether plan n drops an expert, [n, layers, experts] of bool.
        usage: Σ g of the chunk that plan n was measured on, [n, layers, experts].
        divergence: Σ KL over the chunk's scored tokens, [n].
    """

    dropped: Floats
    usage: Floats
    divergence: Floats


def fit(measured: Measurements, prior: Floats, strength: float) -> Credit:
    """Estimate what each expert is worth.

    Args:
        measured: random plans and what they cost.
        prior: a one-shot score, not negative, [layers, experts]; only proportions within a
            layer count.
        strength: of the prior: the shape of its Gamma distribution, so that its coefficient of
            variation is 1 / sqrt(strength). Large: the one-shot score stays as it is.
    """
    shape = prior.shape
    flat = (measured.dropped * measured.usage).reshape(len(measured.divergence), -1)
    total = measured.usage.mean(axis=0).ravel()
    start = _scaled(flat, total, prior, measured.divergence)
    expected = flat @ start
    # Divergence is not a count: what a unit of it tells follows from how far it scatters.
    noise = _dispersion(measured.divergence, expected)
    theta = start.copy()
    exposure = flat.sum(axis=0) / noise
    for _ in range(_STEPS):
        ratio = measured.divergence / np.maximum(flat @ theta, _SMALL)
        credited = theta * (flat.T @ ratio) / noise
        theta = (credited + strength) / (exposure + strength / np.maximum(start, _SMALL))
    left = measured.divergence - flat @ theta
    spread = float(measured.divergence.var())
    explained = 1 - float(left.var()) / spread if spread > 0 else 0.0
    return Credit((theta * total).reshape(shape), explained)


def _scaled(flat: Floats, total: Floats, prior: Floats, divergence: Floats) -> Floats:
    """θ that the prior's proportions mean, with the scale of each layer fitted, [experts of all].

    An expert of the prior's importance s_j that is used x̄_j costs s_j / x̄_j a unit of gate.
    """
    layers, experts = prior.shape
    floor = 1e-3 * prior.mean(axis=1, keepdims=True) + _SMALL
    shares = np.maximum(prior, floor)
    shares = (shares / shares.sum(axis=1, keepdims=True)).ravel()
    unit = shares / np.maximum(total, 1e-3 * total.mean() + _SMALL)
    by_layer = (flat * unit).reshape(len(flat), layers, experts).sum(axis=2)
    scale = np.full(layers, divergence.sum() / max(float(by_layer.sum()), _SMALL))
    for _ in range(_STEPS):
        ratio = divergence / np.maximum(by_layer @ scale, _SMALL)
        # A few pseudo-measurements at the common scale: layers are never credited with nothing.
        scale = (scale * (by_layer.T @ ratio) + scale.mean()) / (by_layer.sum(axis=0) + 1)
    fitted: Floats = unit * np.repeat(scale, experts)
    return fitted


def _dispersion(divergence: Floats, expected: Floats) -> float:
    """Variance over mean around the expectation."""
    squares = (divergence - expected) ** 2 / np.maximum(expected, _SMALL)
    return max(float(squares.mean()), _SMALL)
