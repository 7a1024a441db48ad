"""The cheapest choice of one option a group within a number of bytes, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]

#: States kept at most; beyond, those of nearly the same size are told apart no longer.
_MOST = 1 << 21


@dataclass(frozen=True, slots=True)
class _Items:
    """The options of a group that are worth having: fewer bytes cost more."""

    sizes: Bytes
    costs: Costs
    indices: npt.NDArray[np.intp]

    @classmethod
    def of(cls, sizes: Sequence[int], costs: Sequence[float]) -> _Items:
        kept: list[int] = []
        for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], costs[i])):
            if not kept or costs[index] < costs[kept[-1]]:
                kept.append(index)
        indices = np.array(kept)
        return cls(np.array(sizes)[indices], np.array(costs, np.float64)[indices], indices)


def choose(
    sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], limit: int
) -> tuple[int, ...] | None:
    """Choose one option a group so that the sum of costs is least.

    Groups are taken one after another; of the partial choices only those are kept that none beats
    in both bytes and cost, and that can still beat the best choice known, by the bound of
    Lagrange: cost + λ·bytes of what is chosen and the least of it in every group to come.

    Args:
        sizes: bytes by group and option.
        costs: by group and option, not negative.
        limit: bytes, at most.

    Returns:
        The index of each group's option; None if even the smallest are too large.
    """
    groups = [_Items.of(s, c) for s, c in zip(sizes, costs, strict=True)]
    if sum(int(g.sizes.min()) for g in groups) > limit:
        return None
    price, known = _relaxed(groups, limit)
    bounds = [float((g.costs + price * g.sizes).min()) for g in groups]
    left = [sum(bounds[i + 1 :]) for i in range(len(groups))]
    least = [sum(int(g.sizes.min()) for g in groups[i + 1 :]) for i in range(len(groups))]
    size, cost = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    for group, bound, needed in zip(groups, left, least, strict=True):
        grown = (size[:, None] + group.sizes).ravel()
        paid = (cost[:, None] + group.costs).ravel()
        hopeful = paid + price * (grown - limit) + bound <= known * (1 + 1e-9) + 1e-15
        alive = np.flatnonzero(hopeful & (grown + needed <= limit))
        alive = alive[np.lexsort((paid[alive], grown[alive]))]
        alive = alive[_best_so_far(paid[alive])]
        if len(alive) > _MOST:
            alive = alive[:: len(alive) // _MOST + 1]
        size, cost = grown[alive], paid[alive]
        steps.append((alive // len(group.sizes), alive % len(group.sizes)))
    at, chosen = int(cost.argmin()), []
    for group, (parents, choices) in zip(reversed(groups), reversed(steps), strict=True):
        chosen.append(int(group.indices[choices[at]]))
        at = int(parents[at])
    return tuple(reversed(chosen))


def _best_so_far(costs: Costs) -> npt.NDArray[np.bool_]:
    """Which are below all before them."""
    before = np.concatenate(([np.inf], np.minimum.accumulate(costs)[:-1]))
    return costs < before


def _relaxed(groups: Sequence[_Items], limit: int) -> tuple[float, float]:
    """Return the price of a byte at which the limit is just kept, and what a choice at it costs."""

    def at(price: float) -> tuple[int, float]:
        picks = [int((g.costs + price * g.sizes).argmin()) for g in groups]
        size = sum(int(g.sizes[i]) for g, i in zip(groups, picks, strict=True))
        return size, sum(float(g.costs[i]) for g, i in zip(groups, picks, strict=True))

    if at(0.0)[0] <= limit:
        return 0.0, at(0.0)[1]
    low, high = 0.0, 1e-12
    while at(high)[0] > limit:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[0] <= limit else (middle, high)
    return high, at(high)[1]
