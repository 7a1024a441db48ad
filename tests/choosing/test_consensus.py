"""What methods agree on, counted by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggprune.calibration.routing import Shares
from ggprune.choosing.choose import rank
from ggprune.choosing.cover import cover_scores
from ggprune.choosing.methods import find
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.types import Floats
from tests.support.statistics import EXPERTS, LAYERS, routed


def ranked(method: str, keep: int) -> np.ndarray:
    request = Request(budget=Budget(keep=keep), method=method, super_experts=False)
    (found,) = rank(find(method), routed(), request, Resources()).values()
    return found.scored(keep)[0]


@pytest.mark.parametrize("keep", [4, 8, 12])
def test_places_by_hand(keep: int) -> None:
    """The place by cover, and by what lies between Σ g‖f‖ and that over N."""
    cover, sums = ranked("cover", keep), routed().total
    places = np.zeros((LAYERS, EXPERTS))
    for layer in range(LAYERS):
        added, times = sums.contribution_sum[layer].tolist(), sums.count[layer].tolist()
        middle = [a / math.sqrt(n) if n else 0.0 for a, n in zip(added, times, strict=True)]
        for scores in (cover[layer].tolist(), middle):
            for place, expert in enumerate(sorted(range(EXPERTS), key=scores.__getitem__)):
                places[layer, expert] += place
    assert np.array_equal(ranked("consensus", keep), places)


def test_none_of_them_decides_alone() -> None:
    plans = [
        np.sort(np.argsort(-ranked(method, 8), axis=1)[:, :8]).tolist()
        for method in ("consensus", "cover", "contribution", "reap")
    ]
    assert plans[0] not in plans[1:]


def test_comparing_covers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both cover and consensus need it, and it is what choosing takes longest for."""
    calls: list[int] = []

    def counted(routing: Shares, keep: int, *args: Any, **more: Any) -> Floats:
        calls.append(keep)
        return cover_scores(routing, keep, *args, **more)

    monkeypatch.setattr("ggprune.choosing.methods.cover.cover_scores", counted)
    request = Request(budget=Budget(keep=8), super_experts=False)
    rankings = rank(find("auto"), routed(), request, Resources())
    kept = {name: ranking.kept(8) for name, ranking in rankings.items()}
    assert calls == [8]
    assert not np.array_equal(kept["cover"], kept["consensus"])
    assert np.array_equal(kept["cover"], np.sort(np.argsort(-ranked("cover", 8))[:, :8]))
