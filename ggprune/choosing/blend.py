"""Domains weighed against each other: which experts serve all kinds of text best.

Where s_d is an additive score (a sum over tokens) gathered on domain d, and T_d its sum over a
layer's experts, experts are ranked by Σ_d W_d · s_d / T_d. Dividing by T_d makes domains
comparable whatever their amount of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ggprune.choosing.methods.sums import choose_all
from ggprune.errors import InputError
from ggprune.types import Floats

#: How fast weight moves to the domain served worst, at first.
_STEP = 8.0
#: How often in a row the minimum may fail to rise.
_PATIENCE = 40
_MOST_STEPS = 400

Chooser = Callable[[Floats], npt.NDArray[np.int64]]


def shares(scores: Floats) -> Floats:
    """Scores as shares of their layer, s_d / T_d; where a layer has none, all are equal.

    Args:
        scores: [..., experts], not negative.
    """
    totals = scores.sum(axis=-1, keepdims=True)
    even = np.full_like(scores, 1 / scores.shape[-1])
    relative: Floats = np.divide(scores, totals, where=totals > 0, out=even)
    return relative


class Coverage:
    """How well each domain is served by a choice of experts, 0 to 1.

    cov_d = mean over layers of (Σ over kept of s_d) / (the most that many experts could hold).

    Args:
        by_domain: additive scores, [domains, layers, experts].
        keep: experts a layer.
        groups: contiguous blocks of experts of which as many stay each.
    """

    def __init__(self, by_domain: Floats, keep: int, groups: int = 1) -> None:
        self._shares = shares(by_domain)
        best = [
            np.take_along_axis(domain, choose_all(domain, keep, groups), axis=1).sum(axis=1)
            for domain in self._shares
        ]
        self._best = np.array(best)

    def of(self, kept: npt.NDArray[np.int64]) -> Floats:
        """Coverage of each domain, [domains], by experts [layers, keep]."""
        indices = np.broadcast_to(kept, (len(self._shares), *kept.shape))
        held = np.take_along_axis(self._shares, indices, axis=2).sum(axis=2)
        covered: Floats = (held / self._best).mean(axis=1)
        return covered


def blended(by_domain: Floats, weights: npt.NDArray[np.float64]) -> Floats:
    """Σ_d W_d · s_d / T_d, [layers, experts]."""
    mixed: Floats = np.tensordot(weights, shares(by_domain), axes=1)
    return mixed


def max_min_weights(
    by_domain: Floats, keep: int, choice: Chooser, groups: int = 1
) -> npt.NDArray[np.float64]:
    """Weights under which the domain served worst is served best.

    Moves weight toward the worst-covered domain (multiplicative weights) in smaller and smaller
    steps until the smallest coverage stops rising. Nothing is drawn: the same input gives the
    same weights.

    Args:
        by_domain: additive scores, [domains, layers, experts].
        keep: experts a layer.
        choice: scores of all layers -> the experts kept, [layers, keep].
        groups: see Coverage.

    Returns:
        [domains], adding up to 1.
    """
    domains, served = by_domain.shape[0], Coverage(by_domain, keep, groups)
    logs = np.zeros(domains)
    best, best_weights, failures = -1.0, np.full(domains, 1 / domains), 0
    for step in range(_MOST_STEPS):
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        covered = served.of(choice(blended(by_domain, weights)))
        if covered.min() > best + 1e-9:
            best, best_weights, failures = float(covered.min()), weights, 0
        else:
            failures += 1
        if failures >= _PATIENCE:
            break
        logs += _STEP / (1 + step / 10) * (covered.mean() - covered)
    return best_weights


def parse_weights(text: str, domains: Sequence[str]) -> npt.NDArray[np.float64]:
    """Read ``code=2,math=1``; domains that are not named count 0.

    Raises:
        InputError: no such domain, or not a positive weight.
    """
    weights = np.zeros(len(domains))
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in domains:
            raise InputError(
                f"--blend {text}: there is no domain {name!r}",
                remedy=f"Domains: {', '.join(domains)}; or --blend uniform, --blend maxmin.",
            )
        weights[list(domains).index(name)] = _weight(text, value) if equals else 1.0
    total = weights.sum()
    if total <= 0:
        raise InputError(f"--blend {text}: all weights are 0", remedy="Give one above 0.")
    normalised: npt.NDArray[np.float64] = weights / total
    return normalised


def _weight(text: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise InputError(f"--blend {text}: {value!r} is not a weight", remedy="Write code=2,math=1")
    return weight


def named(names: Sequence[str], values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Values by the domain's name, rounded for a file."""
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}
