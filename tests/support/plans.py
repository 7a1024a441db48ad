"""Plans as choosing makes them, in one line."""

from __future__ import annotations

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.request import Budget, Request
from ggprune.choosing.scores import choose_all, retained
from ggprune.plan import LayerPlan, Plan
from ggprune.types import Floats


def planned(
    statistics: Statistics, keep: int, method: str | None = "contribution", **more: object
) -> Plan:
    """Choose by a method, without protection of super experts unless asked for."""
    asked = {"super_experts": False, **more}
    request = Request(budget=Budget(keep=keep), method=method, **asked)  # type: ignore[arg-type]
    return choose_plan(statistics, request)


def by_scores(statistics: Statistics, keep: int, scores: Floats) -> Plan:
    """Keep the experts with the highest scores, [layers, experts]."""
    identity, total = statistics.identity, statistics.total
    layers = {
        layer: LayerPlan(tuple(kept.tolist()), retained(total, row, kept))
        for row, (layer, kept) in enumerate(
            zip(statistics.layers, choose_all(scores, keep, identity.groups), strict=True)
        )
    }
    return Plan(keep, layers, "scores", identity.experts, identity.architecture, identity)
