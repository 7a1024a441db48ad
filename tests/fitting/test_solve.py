"""The knapsack against trying everything, and power laws through points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ggprune.fitting.predict import Curve
from ggprune.fitting.solve import choose


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    groups, options = 6, 4
    sizes = [sorted(map(int, random.integers(1, 1000, options)), reverse=True)] * groups
    sizes = [[s * int(random.integers(1, 30)) for s in each] for each in sizes]
    costs = [sorted(map(float, random.lognormal(0, 2, options))) for _ in range(groups)]
    least = sum(min(each) for each in sizes)
    limit = int(least + random.random() * (sum(max(each) for each in sizes) - least))
    best = min(
        sum(costs[g][o] for g, o in enumerate(each))
        for each in itertools.product(range(options), repeat=groups)
        if sum(sizes[g][o] for g, o in enumerate(each)) <= limit
    )
    found = choose(sizes, costs, limit)
    assert found is not None
    assert sum(sizes[g][o] for g, o in enumerate(found)) <= limit
    assert sum(costs[g][o] for g, o in enumerate(found)) == pytest.approx(best, rel=1e-12)


def test_nothing_fits() -> None:
    assert choose([[5, 3], [4, 2]], [[0, 1], [0, 1]], 4) is None
    assert choose([[5, 3], [4, 2]], [[0, 1], [0, 1]], 5) == (1, 1)


def test_a_power_law_is_met_between_its_points() -> None:
    curve = Curve.through([(1.0, 2.0), (16.0, 8.0)])
    assert curve.at(4.0) == pytest.approx(4.0)
    assert curve.at(64.0) == pytest.approx(16.0)
    assert curve.at(0.25) == pytest.approx(1.0)
    assert curve.at(0.0) == 0
    assert Curve.through([(4.0, 1.0)], 0.5).at(16.0) == pytest.approx(2.0)
    assert Curve.through([(1.0, 2.0), (4.0, 1.0)]).at(2.0) == pytest.approx(2.0)
    assert Curve.through([]).at(3.0) == 0
