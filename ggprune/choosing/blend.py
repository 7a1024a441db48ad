"""Domains weighed against each other: which experts serve all kinds of text best.

Where s_d is an additive score (a sum over tokens) gathered on domain d, and T_d its sum over a
layer's experts, experts are ranked by Σ_d W_d · s_d / T_d. Dividing by T_d makes domains
comparable whatever their amount of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ggprune.choosing.scores import choose_all, fractions
from ggprune.errors import InputError
from ggprune.types import Floats, Ints
from ggprune.util import did_you_mean

#: Blends that are no weights of one's own.
NAMED = ("uniform", "maxmin")
#: How fast weight moves to the domain served worst, at first.
_STEP = 8.0
#: How often in a row the minimum may fail to rise.
_PATIENCE = 40
_MOST_STEPS = 400

#: Chooses from scores of all layers the experts that stay, [layers, keep].
Chooser = Callable[[Floats], Ints]


class Coverage:
    """How well a choice of experts serves each domain, 0 to 1.

    cov_d = mean over layers of (Σ over kept of s_d) / (the most that many experts could hold).

    Args:
        by_domain: additive scores, [domains, layers, experts].
        keep: experts a layer.
        groups: expert groups; each keeps the same number.
    """

    def __init__(self, by_domain: Floats, keep: int, groups: int = 1) -> None:
        self._fractions = fractions(by_domain)
        best = [
            np.take_along_axis(domain, choose_all(domain, keep, groups), axis=1).sum(axis=1)
            for domain in self._fractions
        ]
        self._best = np.array(best)

    def of(self, kept: Ints) -> Floats:
        """Compute the coverage of each domain, [domains]; ``kept`` is [layers, keep]."""
        indices = np.broadcast_to(kept, (len(self._fractions), *kept.shape))
        held = np.take_along_axis(self._fractions, indices, axis=2).sum(axis=2)
        covered: Floats = (held / self._best).mean(axis=1)
        return covered


def blended(by_domain: Floats, weights: Floats) -> Floats:
    """Σ_d W_d · s_d / T_d, [layers, experts]."""
    mixed: Floats = np.tensordot(weights, fractions(by_domain), axes=1)
    return mixed


def max_min_weights(by_domain: Floats, keep: int, choice: Chooser, groups: int = 1) -> Floats:
    """Find weights under which the domain served worst is served best.

    Move weight toward the worst-covered domain (multiplicative weights) in smaller and smaller
    steps until the smallest coverage stops rising. Nothing is drawn: the same input gives the
    same weights.

    Args:
        by_domain: additive scores, [domains, layers, experts].
        keep: experts a layer.
        choice: which experts stay by some scores.
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


def mixed(
    name: str, by_domain: Floats, domains: Sequence[str], keep: int, choice: Chooser, groups: int
) -> tuple[Floats, Floats]:
    """Blend domains as a request says.

    Args:
        name: one of NAMED, or weights as in parse_weights.
        by_domain, keep, choice, groups: see max_min_weights.
        domains: their names.

    Returns:
        Scores [layers, experts] and weights [domains].
    """
    if name == "uniform":
        weights = np.full(len(domains), 1 / len(domains))
    elif name == "maxmin":
        weights = max_min_weights(by_domain, keep, choice, groups)
    else:
        weights = parse_weights(name, domains)
    return blended(by_domain, weights), weights


def parse_weights(text: str, domains: Sequence[str]) -> Floats:
    """Read ``code=2,math=1``; domains that are not named get weight 0.

    Raises:
        InputError: no such domain, or not a positive weight.
    """
    weights, known = np.zeros(len(domains)), (*NAMED, *domains)
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in domains:
            raise InputError(
                f"blend={text}: there is no domain {name!r}.{did_you_mean(name, known)}",
                remedy=f"Domains: {', '.join(domains)}; or blend=uniform, blend=maxmin.",
            )
        weights[list(domains).index(name)] = _weight(text, value) if equals else 1.0
    total = weights.sum()
    if total <= 0:
        raise InputError(f"blend={text}: all weights are 0", remedy="Give one above 0.")
    normalised: Floats = weights / total
    return normalised


def _weight(text: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise InputError(
            f"blend={text}: {value!r} is not a weight", remedy="Write it as code=2,math=1."
        )
    return weight


def by_name(names: Sequence[str], values: Floats) -> dict[str, float]:
    """Pair values with the names of domains, rounded for a file."""
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}
